"""Mapping over cases with Dask. Beside local_cluster.py the only place that imports it."""

import contextlib
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from flows.local_cluster import as_many_as_fit, ask, local_cluster, replace_workers
from liverseg_core.config import ComputeConfig
from liverseg_core.environment import environment
from liverseg_core.errors import LiversegError
from liverseg_core.runners import Outcome, Runner, SerialRunner

LOG = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")

IN_FLIGHT_PER_WORKER = 4
"""Enough to keep a worker busy, few enough that 100,000 cases don't make 100,000 futures."""
WORKER_WAIT_S = 60
ADDRESS = re.compile(r"(tcp://|tls://)?[^\s/]+:\d{1,5}")
LOOK_S = 5
"""How long nothing may be done before we look whether anyone works."""
NO_WORKER_S = 60
"""So long without a worker is no restart any more. A slow case has one."""
RESTART_S = 180
"""To replace workers, on a machine that is busy with something else."""
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
    workers = as_many_as_fit() if compute.workers is None else compute.workers
    if compute.dask is None and workers == 0:
        yield SerialRunner()
        return
    from distributed import Client
    from distributed.utils import silence_logging_cmgr

    with contextlib.ExitStack() as stack:
        # Dask gives its workers one thread each by way of this process's environment. Training here wants all
        # cores, and the same number whether or not there was a case to make: sums of two threads differ from
        # sums of one in their last bits.
        stack.enter_context(environment({}))
        stack.enter_context(silence_logging_cmgr("CRITICAL"))  # Dask's tracebacks of what we say in a line
        try:
            cluster = compute.dask or stack.enter_context(local_cluster(workers))
            client = stack.enter_context(Client(cluster, timeout=WORKER_WAIT_S, set_as_default=False))
            client.wait_for_workers(1, timeout=WORKER_WAIT_S)
        except (OSError, RuntimeError, TimeoutError, ValueError) as error:
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


class DaskRunner:
    """Maps over the workers of a Dask client, a bounded number of items at a time."""

    def __init__(self, client: Any) -> None:
        self.client = client

    @property
    def memory_per_task(self) -> int | None:
        """The smallest worker's memory, less what it holds anyway, over its threads."""
        return min(
            (
                int(worker["memory_limit"] * USABLE - PROCESS_BYTES) // worker["nthreads"]
                for worker in self._workers()
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
            LiversegError: LS403 when the scheduler is lost, or for a minute no worker was there; of a cluster
                of our own, when those started in their place do not come either.
        """
        limit = IN_FLIGHT_PER_WORKER * max(1, sum(worker["nthreads"] for worker in self._workers()))
        waiting, suspects, pending = deque(items), deque[Item](), dict[Any, Item]()
        while waiting or suspects or pending:
            while waiting and len(pending) < limit:
                self._submit(function, waiting.popleft(), pending)
            alone = not pending
            if alone:
                self._submit(function, suspects.popleft(), pending)
            for item, outcome in self._fetched(pending):
                if outcome is not None:
                    yield outcome
                elif alone:
                    yield Outcome(item, error=_worker_died(item))
                else:
                    suspects.append(item)

    def _submit(self, function: Callable[[Item], Result], item: Item, pending: dict[Any, Item]) -> None:
        pending[self.client.submit(_attempt, function, item, pure=False)] = item

    def _fetched(self, pending: dict[Any, Item]) -> Iterator[tuple[Item, Outcome[Item, Any] | None]]:
        """Completed items with what came of them: nothing, if they are blamed for the death of workers."""
        from distributed import CancelledError, KilledWorker
        from distributed.comm import CommClosedError

        for future in self._completed(pending):
            outcome: Outcome[Item, Any] | None
            try:
                outcome = ask(self.client, self.client.gather(future, asynchronous=True), NO_WORKER_S)
            except KilledWorker:
                outcome = None
            except (TimeoutError, CancelledError, CommClosedError) as error:
                if future.status == "error":  # the function's own
                    raise
                if not isinstance(error, TimeoutError):
                    raise _lost(error) from None
                self._workers()  # the scheduler is there?
                continue  # its worker died with it, and it is computed again; or hangs, till Dask gives it up
            yield pending.pop(future), outcome

    def _completed(self, pending: Iterable[Any]) -> Iterable[Any]:
        """Wait until there are any, and see meanwhile that there are workers."""
        from distributed import CancelledError, wait
        from distributed.comm import CommClosedError

        seen, replaced = time.monotonic(), False
        while True:
            try:
                with self.client.as_current():
                    done = wait(list(pending), timeout=LOOK_S, return_when="FIRST_COMPLETED").done
                break
            except (CancelledError, CommClosedError) as error:
                raise _lost(error) from None
            except TimeoutError:
                if self._anyone_works():
                    seen, replaced = time.monotonic(), False
                elif time.monotonic() - seen > NO_WORKER_S:
                    self._replace_workers(replaced)
                    seen, replaced = time.monotonic(), True
        if any(future.status == "cancelled" for future in done):
            raise _lost("the scheduler went away")
        # A result that died with its worker before it was fetched is lost: it is computed again.
        return [future for future in done if future.status != "lost"]

    def _workers(self) -> Iterable[Mapping[str, Any]]:
        """What the scheduler knows of each worker.

        Raises:
            LiversegError: LS403 when it does not answer.
        """
        try:
            known = ask(self.client, self.client.scheduler.identity(n_workers=-1), NO_WORKER_S)
        except TimeoutError:
            raise _lost(f"its scheduler has said nothing for {NO_WORKER_S:.0f} s") from None
        except OSError as error:
            raise _lost(error) from None
        return list(known["workers"].values())

    def _anyone_works(self) -> bool:
        """A worker whose memory is full is paused: it ends what it is at and takes nothing new."""
        return any(
            worker["status"] == "running" or worker["metrics"].get("task_counts", {}).get("executing")
            for worker in self._workers()
        )

    def _replace_workers(self, replaced: bool) -> None:
        missing = f"no worker has taken work for {NO_WORKER_S:.0f} s"
        if self.client.cluster is None or replaced:
            raise _lost(missing)
        LOG.warning("Dask: %s; starting new ones", missing)
        try:
            replace_workers(self.client.cluster, RESTART_S)
        except Exception as error:
            raise _lost(f"{missing}, and new ones do not start: {error or 'too slow'}") from None


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
