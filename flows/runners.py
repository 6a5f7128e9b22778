"""Mapping over cases with Dask. The only place that imports it."""

import contextlib
import os
import re
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import resource_tracker
from typing import Any, TypeVar

from liverseg_core.config import ComputeConfig
from liverseg_core.environment import environment
from liverseg_core.errors import LiversegError
from liverseg_core.runners import Outcome, Runner, SerialRunner

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_FLIGHT_PER_WORKER = 4
"""Enough to keep a worker busy, few enough that 100,000 cases don't make 100,000 futures."""
WORKER_WAIT_S = 60
ADDRESS = re.compile(r"(tcp://|tls://)?[^\s/]+:\d{1,5}")
NO_PROGRESS_S = 1800
MALLOC = {"MALLOC_TRIM_THRESHOLD_": 1 << 28, "MALLOC_MMAP_THRESHOLD_": 1 << 25}
"""Dask has its workers give freed memory back at once; a plane's buffers are then mapped and cleared anew for
each plane, and ingest costs half as much again."""
ROOM_BYTES = 600_000_000
"""With less, a worker would have less than 240 MB for a case; a streamed one of 512 × 512 takes about 60."""
USABLE = 0.9
"""Of a worker's memory limit: its nanny kills it at 0.95."""
PROCESS_BYTES = 300_000_000
"""What a worker's process holds with every library loaded, idle: 230 MB, with those of S3 70 MB more."""


@contextlib.contextmanager
def open_runner(compute: ComputeConfig) -> Iterator[Runner]:
    """Start or reach the workers that the settings ask for.

    Raises:
        LiversegError: LS201 for an address that can't be reached as it is; LS402 when no Dask worker answers.
    """
    _check_address(compute.dask)
    workers = _as_many_as_fit() if compute.workers is None else compute.workers
    if compute.dask is None and workers == 0:
        yield SerialRunner()
        return
    from distributed import Client

    with contextlib.ExitStack() as stack:
        # Dask gives its workers one thread each by way of this process's environment. Training here wants all
        # cores, and the same number whether or not there was a case to make: sums of two threads differ from
        # sums of one in their last bits.
        stack.enter_context(environment({}))
        try:
            address = compute.dask or stack.enter_context(_local_cluster(workers))
            client = stack.enter_context(Client(address, timeout=WORKER_WAIT_S, set_as_default=False))
            client.wait_for_workers(1, timeout=WORKER_WAIT_S)
        except (OSError, TimeoutError, ValueError) as error:
            where = compute.dask or "the local cluster"
            raise LiversegError(
                "LS402",
                f"no Dask worker answers at {where} ({error})",
                "a scheduler with at least one worker",
                "Start one, correct --dask, or use --workers 0 to work without Dask",
            ) from None
        yield DaskRunner(client)


def _check_address(address: str | None) -> None:
    """Refuse what a client would not end of: it retries for ever without certificates."""
    if address is None:
        return
    if not ADDRESS.fullmatch(address):
        what = f"--dask {address!r} is no scheduler's address"
        raise LiversegError("LS201", what, "HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT", "Correct it")
    if address.startswith("tls://"):
        from distributed.security import Security

        if Security().get_connection_args("client")["ssl_context"] is None:
            what = f"there are no certificates for {address}"
            allowed = "a certificate authority, a certificate and a key for Dask"
            raise LiversegError("LS201", what, allowed, "Set DASK_DISTRIBUTED__COMM__TLS__… for each")


def _as_many_as_fit() -> int:
    """One worker a core, as far as each has memory for itself and a case."""
    from distributed.system import MEMORY_LIMIT  # of this container, where there is one

    return max(1, min(os.cpu_count() or 1, int(MEMORY_LIMIT) // ROOM_BYTES))


def _local_cluster(workers: int) -> Any:
    """Worker processes that never see Ctrl-C, which a terminal sends to all: this process ends them."""
    import dask
    from distributed import LocalCluster

    spawning = "distributed.nanny.pre-spawn-environ"
    resource_tracker.ensure_running()  # here, since the thread that starts it has its signals unblocked
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:  # the thread that starts workers, now and later, takes the mask from this one, and they from it
        with dask.config.set({spawning: {**dask.config.get(spawning), **MALLOC}}):
            return LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",  # None would try, and talk about, port 8787
                silence_logs="CRITICAL",
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class DaskRunner:
    """Maps over the workers of a Dask client, a bounded number of items at a time."""

    def __init__(self, client: Any) -> None:
        self.client = client

    @property
    def memory_per_task(self) -> int | None:
        """The smallest worker's memory, less what it holds anyway, over its threads."""
        workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        return min(
            (
                int(worker["memory_limit"] * USABLE - PROCESS_BYTES) // worker["nthreads"]
                for worker in workers
                if worker["memory_limit"]
            ),
            default=None,
        )

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[Outcome[Item, Result]]:
        """Call `function` on every item; outcomes come as they complete.

        A worker that dies may take innocent items along, so an item blamed for a death is tried once more,
        alone, before it is given up with LS702.

        Raises:
            LiversegError: LS403 when the scheduler is lost or nothing completes for half an hour.
        """
        limit = IN_FLIGHT_PER_WORKER * max(1, len(self.client.nthreads()))
        waiting, suspects, pending = deque(items), deque[Item](), dict[Any, Item]()
        while waiting or suspects or pending:
            while waiting and len(pending) < limit:
                self._submit(function, waiting.popleft(), pending)
            alone = not pending
            if alone:
                self._submit(function, suspects.popleft(), pending)
            for future in self._completed(pending):
                item = pending.pop(future)
                outcome = self._outcome(future)
                if outcome is not None:
                    yield outcome
                elif alone:
                    yield Outcome(item, error=_worker_died(item))
                else:
                    suspects.append(item)

    def _submit(self, function: Callable[[Item], Result], item: Item, pending: dict[Any, Item]) -> None:
        pending[self.client.submit(_attempt, function, item, pure=False)] = item

    def _completed(self, pending: Iterable[Any]) -> Iterable[Any]:
        from distributed import CancelledError, wait
        from distributed.comm import CommClosedError

        try:
            with self.client.as_current():
                done = wait(list(pending), timeout=NO_PROGRESS_S, return_when="FIRST_COMPLETED").done
        except (TimeoutError, CancelledError, CommClosedError) as error:
            raise _lost(error) from None
        if any(future.status == "cancelled" for future in done):
            raise _lost("the scheduler went away")
        # A result that died with its worker before it was fetched is lost: it is computed again.
        return [future for future in done if future.status != "lost"]

    def _outcome(self, future: Any) -> Outcome[Any, Any] | None:
        """What a completed future holds; None when it is blamed for the death of workers."""
        from distributed import CancelledError, KilledWorker
        from distributed.comm import CommClosedError

        try:
            outcome: Outcome[Any, Any] = future.result(timeout=NO_PROGRESS_S)
        except KilledWorker:
            return None
        except (TimeoutError, CancelledError, CommClosedError) as error:
            if future.status == "error":  # the function's own
                raise
            raise _lost(error) from None
        return outcome


def _attempt(function: Callable[[Item], Result], item: Item) -> Outcome[Item, Result]:
    return next(iter(SerialRunner().map(function, [item])))


def _worker_died(item: object) -> LiversegError:
    name = getattr(item, "case", item)
    return LiversegError(
        "LS702",
        f"a worker died on {name} again and again, also when it had the worker for itself",
        "a case that fits a worker's memory",
        "Give the workers more memory, or leave the case out",
    )


def _lost(reason: object) -> LiversegError:
    return LiversegError(
        "LS403",
        f"Dask stopped answering ({str(reason).partition(chr(10))[0].rstrip(':')})",
        "a scheduler and workers that keep running",
        "Restart them and run the same command again; finished cases are kept",
    )
