"""What a command costs from start to end, with every process that it starts."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

EVERY_S = 0.1


def run_measured(command: Sequence[str], environment: Mapping[str, str], log: Path) -> dict[str, float]:
    """Run a command to its end.

    Args:
        command: What to run.
        environment: What is other than in this process's.
        log: Receives all that it prints.

    Returns:
        Wall seconds; user and system CPU seconds of all its processes; MB that its largest process held at
        most, and that all of them together did, what they share counted once.
    """
    began = time.time()
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=os.environ | environment | {"BEGAN": str(began)}, stdout=out, stderr=out
        )
        peak = [0, 0]
        watching = threading.Thread(target=_watch, args=(process.pid, peak))
        watching.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.time() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        watching.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)}\n{log.read_text()}")
    return {
        "wall_s": round(wall_s, 1),
        "user_s": round(usage.ru_utime, 1),
        "system_s": round(usage.ru_stime, 1),
        "peak_mb": round(peak[0] / 1e6),
        "all_processes_mb": round(peak[1] / 1e6),
    }


def _watch(pid: int, peak: list[int]) -> None:
    """Note the most memory, a few times a second, until the process has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        while root.status() != psutil.STATUS_ZOMBIE:
            held = [_memory(one) for one in (root, *root.children(recursive=True))]
            alone, shared = zip(*held, strict=True)
            peak[0] = max(peak[0], *map(sum, held))
            peak[1] = max(peak[1], sum(alone) + max(shared))
            time.sleep(EVERY_S)


def _memory(process: psutil.Process) -> tuple[int, int]:
    """Bytes that are its own, and that files and others share with it."""
    try:
        held = process.memory_info()
    except psutil.NoSuchProcess:
        return 0, 0
    return held.rss - held.shared, held.shared
