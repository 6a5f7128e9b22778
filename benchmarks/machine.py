"""What benchmark results were measured on."""

import os
import platform
from pathlib import Path

import psutil


def describe() -> dict[str, object]:
    """What the numbers were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")
    memory = round(psutil.virtual_memory().total / 1e9)
    return {"cpu": model, "cores": os.cpu_count(), "memory_gb": memory, "python": platform.python_version()}
