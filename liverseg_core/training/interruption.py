"""Signals that stop training after its checkpoint, and kernels that repeat to the bit."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch


@contextlib.contextmanager
def stop_signal() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying of them; only the main thread may ask for that."""
    stopped: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        stopped.append(number)

    main = threading.current_thread() is threading.main_thread()
    before: dict[signal.Signals, Any] = {
        number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT) if main
    }
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """Deterministic kernels where there are any; unwanted, the fastest kernels that a GPU finds by trying.

    New memory isn't filled, as torch does with such kernels to show up who reads it: nobody here does, and it
    is 4 % of a step.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    new_memory: Any = torch.utils.deterministic
    fill = new_memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    torch.backends.cudnn.benchmark = not wanted
    new_memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        new_memory.fill_uninitialized_memory = fill
