"""A command that lives no longer than the process it is for, however that ends.

    python tests/guarded.py OWNER COMMAND [ARGUMENT ...]

runs the command in a session of its own until it ends, this process is told to stop, or OWNER is gone; the
folder that `REMOVED_AFTER` names is removed then.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

STOP_SECONDS = 10.0


def main() -> int:
    """Run the command; its exit code."""
    owner, command = int(sys.argv[1]), sys.argv[2:]
    told: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: told.append(number))
    process = subprocess.Popen(command, start_new_session=True)
    while process.poll() is None and not told and _is_there(owner):
        time.sleep(0.2)
    for number in (signal.SIGINT, signal.SIGKILL):  # a worker in the background ignores SIGTERM
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    if folder := os.environ.get("REMOVED_AFTER"):
        shutil.rmtree(folder, ignore_errors=True)
    return process.returncode


def _is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
