"""A Dask cluster of our own: worker processes on this machine that come back whenever one is lost."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Coroutine, Iterator
from multiprocessing import resource_tracker
from typing import Any, TypeVar

Answer = TypeVar("Answer")

MALLOC = {"MALLOC_TRIM_THRESHOLD_": 1 << 28, "MALLOC_MMAP_THRESHOLD_": 1 << 25}
"""Dask has its workers give freed memory back at once; a plane's buffers are then mapped and cleared anew for
each plane, and ingest costs half as much again."""
ROOM_BYTES = 600_000_000
"""With less, a worker would have less than 240 MB for a case; a streamed one of 512 × 512 takes about 60."""


def as_many_as_fit() -> int:
    """One worker a core, as far as each has memory for itself and a case."""
    from distributed.system import MEMORY_LIMIT  # of this container, where there is one

    return max(1, min(os.cpu_count() or 1, int(MEMORY_LIMIT) // ROOM_BYTES))


@contextlib.contextmanager
def local_cluster(workers: int) -> Iterator[Any]:
    """Worker processes that never see Ctrl-C, which a terminal sends to all: this process ends them."""
    import dask
    from distributed import LocalCluster

    spawning = "distributed.nanny.pre-spawn-environ"
    settings = {  # for as long as workers may be started
        spawning: {**dask.config.get(spawning), **MALLOC},
        # So long after a worker was lost, Dask looks whether one of its name is there. One that was lost once
        # more and is just starting is not, and its nanny, which starts it, would be closed for good.
        "distributed.deploy.lost-worker-timeout": "1000 days",
    }
    with dask.config.set(settings), contextlib.ExitStack() as stack:
        with _deaf_to_ctrl_c():  # the thread that starts workers, now and later, takes its mask from this one
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",  # None would try, and talk about, port 8787
                silence_logs="CRITICAL",
            )
        yield stack.enter_context(cluster)


def replace_workers(cluster: Any, timeout_s: float) -> None:
    """End the worker processes of a cluster, hung, paused or gone for good, and start as many anew.

    Raises:
        TimeoutError: They neither ended nor started so soon.
        Exception: Whatever keeps one from starting.
    """

    async def replace() -> None:
        wanted = dict(cluster.worker_spec)
        await cluster.scale_down(list(wanted))
        cluster.worker_spec.update(wanted)
        await cluster

    ask(cluster, replace(), timeout_s)


def ask(dask: Any, question: Coroutine[Any, Any, Answer], timeout_s: float) -> Answer:
    """Await something in the event loop of a client or cluster, and no longer than this.

    Their own `timeout` waits until what it cancelled has ended, which with a hung scheduler is never.

    Raises:
        TimeoutError: It takes longer.
    """
    asked = asyncio.run_coroutine_threadsafe(question, dask.loop.asyncio_loop)
    try:
        return asked.result(timeout_s)
    finally:
        asked.cancel()


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    resource_tracker.ensure_running()  # here, since the thread that starts it has its signals unblocked
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
