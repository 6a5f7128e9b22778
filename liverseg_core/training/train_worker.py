"""One of several training processes: `torchrun … -m liverseg_core.training.train_worker JOB`.

JOB is a file with what `TrainJob.plain` says.
"""

import ctypes
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from liverseg_core.errors import Interrupted, LiversegError
from liverseg_core.training.train import train
from liverseg_core.training.train_job import from_plain

_PR_SET_PDEATHSIG = 1


def main(path: str, report: str | None = None) -> int:
    """Train, telling whoever listens at the descriptor `report`, or the terminal; returns the exit code."""
    if sys.platform == "linux":  # a killed parent's lock is free: nobody may go on writing
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # 1 × 1 × 1 weights have several strides that are the same layout
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    tell = _reporter(int(report)) if report else _print
    job, staging = from_plain(
        json.loads(Path(path).read_text()),
        progress=lambda step, steps: tell("progress", [step, steps]),
        saved=lambda folder: tell("saved", str(folder)),
    )
    try:
        facts = train(job, staging, lambda step, values: tell("log", [step, dict(values)]))
    except LiversegError as error:
        tell("interrupted" if isinstance(error, Interrupted) else "error", list(error.args))
        return int(error.exit_code)
    if facts:  # the first process alone has any
        tell("facts", facts)
    return 0


def _reporter(descriptor: int) -> Callable[[str, Any], None]:
    os.set_inheritable(descriptor, False)  # loader workers would keep the pipe open
    pipe = os.fdopen(descriptor, "w", buffering=1)

    def tell(name: str, value: Any) -> None:
        pipe.write(json.dumps([name, value]) + "\n")
        if name == "saved":
            sys.stdin.readline()  # until it was seen to

    return tell


def _print(name: str, value: Any) -> None:
    if name != "progress":
        print(json.dumps({name: value}), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
