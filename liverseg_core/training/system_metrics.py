"""What training costs the machine: memory, the GPU's time, the time spent waiting for patches."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import psutil  # type: ignore[import-untyped]
import torch

T = TypeVar("T")


@dataclass
class Lap:
    """Time since values were last told, and how much of it the loop waited for patches."""

    start: float = field(default_factory=time.monotonic)
    patches: int = 0
    waited_s: float = 0.0

    def waiting(self, stream: Iterable[T]) -> Iterator[T]:
        """The stream, with the time that each item lets the loop wait added to `waited_s`."""
        iterator = iter(stream)
        while True:
            begin = time.monotonic()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.waited_s += time.monotonic() - begin
            yield item

    def values(self, device: torch.device) -> dict[str, float]:
        """What this lap cost; the next lap begins."""
        seconds = time.monotonic() - self.start
        found = {"patches_per_s": self.patches / seconds, "data_wait_s": self.waited_s, **memory(device)}
        self.start, self.patches, self.waited_s = time.monotonic(), 0, 0.0
        return found


def memory(device: torch.device) -> dict[str, float]:
    """MB of this process with its children, and of the GPU at most since last asked; the GPU's use in %."""
    me, resident = psutil.Process(), 0
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # one of them just ended
            resident += process.memory_info().rss
    values = {"host_mb": resident / 1e6}
    if device.type == "cuda":
        values["gpu_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
        torch.cuda.reset_peak_memory_stats(device)
        with contextlib.suppress(Exception):  # NVIDIA's library is missing, or fails: for a slice of a GPU
            values["gpu_utilisation"] = float(torch.cuda.utilization(device))
    return values
