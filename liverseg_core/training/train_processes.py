"""Several training processes as children of this one, which alone talks to the world.

`torchrun … -m liverseg_core.training.train_worker JOB` does the same, on as many nodes as one likes.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from liverseg_core.errors import Interrupted, LiversegError
from liverseg_core.training.distributed_training import LOST, RENDEZVOUS, lost_process
from liverseg_core.training.interruption import stop_signal
from liverseg_core.training.train_job import TrainJob, Values

_POLL_S = 0.2
_END_S = 10.0
_GOOD_ENDS = (None, 0, 130, 143)


def launch(
    job: TrainJob, staging: Path, processes: int, log: Callable[[int, Values], None]
) -> dict[str, Any]:
    """Train in children of this process, and see them all end.

    Args:
        job: The training.
        staging: Where they write.
        processes: How many.
        log: Told what the first of them would have told its caller, as the job's callables are.

    Returns:
        What the first of them returned.

    Raises:
        LiversegError: What the first of them raised; LS771 when one of them was lost.
        Interrupted: On SIGTERM and SIGINT, once they have saved a checkpoint.
    """
    with tempfile.TemporaryDirectory(prefix="liverseg-train-") as folder, stop_signal() as stopped:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job.plain(staging)))
        receive, send = os.pipe()
        children = [_start(path, rank, processes, send) for rank in range(processes)]
        os.close(send)
        try:
            outcome, lost = _listen(os.fdopen(receive), children, _hear(job, log), stopped)
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
    raise lost_process(lost or "its processes lost each other", job.compute.device)


def _start(path: Path, rank: int, size: int, report: int) -> subprocess.Popen[str]:
    threads = str(max(1, (os.cpu_count() or 1) // size))
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    near = {RENDEZVOUS: f"file://{path.parent}/rendezvous"}
    near |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), "lo")  # heard on this machine alone
    return subprocess.Popen(
        [sys.executable, "-m", "liverseg_core.training.train_worker", str(path), str(report)],
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
        if not lost and (lost := _lost(children)):
            for child in children:  # they may wait for it for ever
                child.kill()
        if name in ("facts", "interrupted", "error"):
            if outcome[0] != "error" or outcome[1][0] == LOST:  # the first reason is the reason
                outcome = name, value
        elif name:
            hear(name, value)
        if name == "saved" and children[0].stdin:  # it waits, so that nothing changes under who copies it
            with contextlib.suppress(BrokenPipeError):
                children[0].stdin.write("\n")
                children[0].stdin.flush()
    for child in children:  # all is said: they end now
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_END_S)
    return outcome, lost or _lost(children)


def _lost(children: Sequence[subprocess.Popen[str]]) -> str:
    """Who ended as none should: the one that was killed, before those that ended because of it."""
    ends = [(code, rank) for rank, child in enumerate(children) if (code := child.poll()) not in _GOOD_ENDS]
    if not ends:
        return ""
    code, rank = min(ends)  # a signal's is below zero
    return f"process {rank} of {len(children)} {_end(code)}"


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


def _hear(job: TrainJob, log: Callable[[int, Values], None]) -> Callable[[str, Any], None]:
    """What children tell, passed on as if it had happened here."""

    def hear(name: str, value: Any) -> None:
        match name:
            case "log":
                log(*value)
            case "progress":
                job.progress(*value)
            case "saved":
                job.saved(Path(value))

    return hear
