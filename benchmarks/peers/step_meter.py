"""What one training step costs, whoever's step it is; plain torch, so that any environment can import it."""

import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

WARM_UP = 2


def measure(step: Callable[[], object], steps: int, device: torch.device) -> dict[str, float]:
    """Do some steps and time each; the first ones, which fill caches and compile, apart.

    Returns:
        Milliseconds of a step, wall as the median and CPU as the least, which other work on the machine
        disturbs least; the peak memory in MB: of the GPU, or of the process.
    """
    for _ in range(WARM_UP):
        step()
    wall, cpu = [], []
    for _ in range(steps):
        _wait(device)
        began, used = time.perf_counter(), cpu_s()
        step()
        _wait(device)
        wall.append(time.perf_counter() - began)
        cpu.append(cpu_s() - used)
    return {
        "step_ms": round(1000 * statistics.median(wall), 2),
        "step_cpu_ms": round(1000 * min(cpu), 2),
        "peak_mb": round(peak_mb(device)),
    }


def peak_mb(device: torch.device) -> float:
    """Most memory that was in use so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
