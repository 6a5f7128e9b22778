"""A stage as a Prefect task."""

from collections.abc import Callable
from typing import Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from tasks.context import Context, Record

StageTask = Task[..., Any]


def stage_task(stage: Callable[..., Record]) -> StageTask:
    """Make a stage function a Prefect task of the same name; finding its artifact shows as Cached."""

    # Prefect's own cache is off: its key holds the run id, it serves stale results after a changed helper and
    # unpickles what it finds. The store decides what is cached (liverseg_core/artifact.py).
    @task(name=stage.__name__, description=stage.__doc__, cache_policy=NO_CACHE, persist_result=False)
    def run(context: Context, *inputs: Record) -> Any:
        record = stage(context, *inputs)
        return Completed(name="Cached", data=record) if record["cached"] else record

    return run
