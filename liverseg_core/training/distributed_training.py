"""Training in several processes, one GPU each: how one of them joins the others and works with them."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn

from liverseg_core.errors import LiversegError
from liverseg_core.models.model import pick_device

RENDEZVOUS = "LIVERSEG_RENDEZVOUS"
"""Where processes that were started from here meet; torchrun has its own ways."""
PATIENCE = timedelta(minutes=30)
"""Longest wait for the other processes; validation cases differ in size."""
LOST = "LS771"


@dataclasses.dataclass(frozen=True)
class World:
    """This process among those that train together."""

    device: torch.device
    rank: int = 0
    size: int = 1
    host: Any = None
    """A group that meets in host memory, so that asking does not wait for the GPU."""

    @property
    def first(self) -> bool:
        """Whether this is the process that logs and saves."""
        return self.rank == 0

    def any(self, number: int) -> int:
        """The highest of the processes' numbers."""
        if self.size == 1:
            return number
        flag = torch.tensor(number)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=self.host)
        return int(flag)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of the processes' values."""
        if self.size == 1:
            return values
        total = values.cpu()
        distributed.all_reduce(total, group=self.host)
        return total

    def share(self, network: nn.Module) -> nn.Module:
        """The network, with gradients that are the mean over all processes."""
        if self.size == 1:
            return network
        if self.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        # norm statistics are brought together before they are used, in `same_statistics`
        return nn.parallel.DistributedDataParallel(network, forward_sync_buffers=False)

    def gradients(self, network: nn.Module, shared: bool) -> contextlib.AbstractContextManager[Any]:
        """Whether processes exchange gradients, which they need only in the last part of a step."""
        return contextlib.nullcontext() if self.size == 1 or shared else network.no_sync()  # type: ignore[operator]

    def same_statistics(self, network: nn.Module) -> None:
        """Give every process the norm statistics of the first, which are those that are saved."""
        if self.size > 1:
            for buffer in network.buffers():
                distributed.broadcast(buffer, 0)


def joined() -> bool:
    """Whether this process is one of several that were started to train together."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def world_size(wanted: int) -> int:
    """How many processes train: as many as were started, otherwise as many as are wanted."""
    return int(os.environ["WORLD_SIZE"]) if joined() else wanted


@contextlib.contextmanager
def join(device: str) -> Iterator[World]:
    """Meet the other processes, if there are any.

    Args:
        device: `compute.device`; `auto` and `cuda` give every process a GPU of its own.

    Raises:
        LiversegError: LS271 for a device that is not there; LS771 when another process is lost meanwhile.
    """
    if not joined():
        yield World(pick_device(device))
        return
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    own_gpu = device in ("auto", "cuda") and on_gpu(device)
    chosen = pick_device(f"cuda:{os.environ['LOCAL_RANK']}" if own_gpu else device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    method = os.environ.get(RENDEZVOUS, "env://")
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    distributed.init_process_group(backend, method, PATIENCE, size, rank)
    try:
        yield World(chosen, rank, size, distributed.new_group(backend="gloo"))
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        raise lost_process(
            f"process {rank} of {size} lost the others ({str(error).splitlines()[0]})", device
        ) from error
    finally:
        distributed.destroy_process_group()


def share_of_batch(batch_size: int, accumulate: int, processes: int) -> int:
    """Patches that go through the network at once.

    Raises:
        LiversegError: LS275.
    """
    if batch_size % (accumulate * processes):
        raise LiversegError(
            "LS275",
            f"train.batch_size {batch_size} is not for {processes} processes times {accumulate} parts",
            f"a multiple of {accumulate * processes}",
            "Change train.batch_size, train.accumulate or compute.processes",
        )
    return batch_size // (accumulate * processes)


def on_gpu(device: str) -> bool:
    """Whether `compute.device` is a GPU here."""
    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def lost_process(what: str, device: str) -> LiversegError:
    """What is raised when one of the processes is no more.

    Fewer processes need less of the machine's memory, but leave each GPU more of the batch.
    """
    less = ("compute.loader_workers", "compute.resident_mb")
    first, second = less if on_gpu(device) else ("compute.processes", "train.batch_size")
    return LiversegError(
        LOST,
        f"training stopped: {what}",
        "all training processes alive to the end",
        "Run the same command again to go on from the last checkpoint; where the machine ran out of memory, "
        f"lower {first} or {second}",
    )
