"""Training in several processes, one GPU each: joining under torchrun, and starting them from here.

`torchrun … -m liverseg_core.train_worker JOB` runs on as many nodes as one likes. On one machine
`compute.processes` does the same without it: the processes are children of this one, which alone talks.
"""

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import torch
from torch import distributed, nn

from liverseg_core.errors import Interrupted, LiversegError
from liverseg_core.interruption import stop_signal
from liverseg_core.model import pick_device

RENDEZVOUS = "LIVERSEG_RENDEZVOUS"
"""Where processes that were started from here meet; torchrun has its own ways."""
PATIENCE = timedelta(minutes=30)
"""Longest wait for the other processes; validation cases differ in size."""
LOST = "LS771"
_POLL_S = 0.2
_GOOD_ENDS = (None, 0, 130, 143)


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
    own_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
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
        raise _lost(f"process {rank} of {size} lost the others ({str(error).splitlines()[0]})") from error
    finally:
        distributed.destroy_process_group()


def launch(job: Mapping[str, Any], processes: int, hear: Callable[[str, Any], None]) -> dict[str, Any]:
    """Train in children of this process, and see them all end.

    Args:
        job: What `train_worker` reads, plain JSON.
        processes: How many.
        hear: Told what the first of them would have told its caller: a name and its arguments.

    Returns:
        What the first of them returned.

    Raises:
        LiversegError: What the first of them raised; LS771 when one of them was lost.
        Interrupted: On SIGTERM and SIGINT, once they have saved a checkpoint.
    """
    with tempfile.TemporaryDirectory(prefix="liverseg-train-") as folder, stop_signal() as stopped:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job))
        receive, send = os.pipe()
        children = [_start(path, rank, processes, send) for rank in range(processes)]
        os.close(send)
        try:
            outcome, lost = _listen(os.fdopen(receive), children, hear, stopped)
        finally:
            for child in children:
                child.kill()
                child.wait()
    name, value = outcome
    if name == "facts":
        facts: dict[str, Any] = value
        return facts
    if name == "interrupted":
        raise Interrupted(*value)
    if name == "error" and value[0] != LOST:
        raise LiversegError(*value)
    raise _lost(lost or "its processes lost each other")


def _start(path: Path, rank: int, size: int, report: int) -> subprocess.Popen[str]:
    threads = str(max(1, (os.cpu_count() or 1) // size))
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    near = {RENDEZVOUS: f"file://{path.parent}/rendezvous"}
    near |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), "lo")  # heard on this machine alone
    return subprocess.Popen(
        [sys.executable, "-m", "liverseg_core.train_worker", str(path), str(report)],
        stdin=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
        pass_fds=(report,),
        env={"OMP_NUM_THREADS": threads, **os.environ, **own, **near},
        text=True,
    )


def _listen(
    told: IO[str],
    children: Sequence[subprocess.Popen[str]],
    hear: Callable[[str, Any], None],
    stopped: Sequence[int],
) -> tuple[tuple[str, Any], str]:
    """Pass on what the first process tells until all is said; its last word, and who was lost."""
    outcome: tuple[str, Any] = ("", None)
    lost, passed_on = "", False
    for name, value in _messages(told):
        if stopped and not passed_on:
            passed_on = True
            for child in children:
                child.send_signal(stopped[0])
        for rank, child in enumerate(children):
            if not lost and child.poll() not in _GOOD_ENDS:
                lost = f"process {rank} of {len(children)} {_end(child.returncode)}"
                for other in children:  # they may wait for it for ever
                    other.kill()
        if name in ("facts", "interrupted", "error"):
            if outcome[0] != "error" or outcome[1][0] == LOST:  # the first reason is the reason
                outcome = name, value
        elif name:
            hear(name, value)
        if name == "saved" and children[0].stdin:  # it waits, so that nothing changes under who copies it
            with contextlib.suppress(BrokenPipeError):
                children[0].stdin.write("\n")
                children[0].stdin.flush()
    return outcome, lost


def _messages(told: IO[str]) -> Iterator[tuple[str, Any]]:
    """What comes through the pipe until its other end closes; ("", None) whenever nothing comes."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        with told:
            for line in told:
                lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=_POLL_S)
        except queue.Empty:
            yield "", None
            continue
        if line is None:
            return
        if line.endswith("\n"):  # a killed process may leave half a line
            name, value = json.loads(line)
            yield name, value


def _end(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _lost(what: str) -> LiversegError:
    return LiversegError(
        LOST,
        f"training stopped: {what}",
        "all training processes alive to the end",
        "Run the same command again to go on from the last checkpoint; where it ran out of memory, lower "
        "compute.processes or train.batch_size",
    )
