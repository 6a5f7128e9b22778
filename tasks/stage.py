"""A stage as a Prefect task. Prefect takes a second to import: a stage run plain never pays for it."""

import functools
from collections.abc import Callable
from typing import Any, cast

from tasks.context import Context, Record


def run_name(stage: str, context: Context) -> str:
    """What a stage's runs are called: the stage, and the fold that it is done for."""
    fold = context.settings.split.fold
    return f"{stage} fold {fold}" if isinstance(fold, int) else stage


def stage_task(stage: Callable[..., Record]) -> Callable[..., Record]:
    """Make a stage function a Prefect task of the same name; finding its artifact shows as Cached."""

    @functools.cache
    def made() -> Any:
        from prefect import task
        from prefect.cache_policies import NO_CACHE
        from prefect.states import Completed

        # Prefect's own cache is off: its key holds the run id, it serves stale results after a changed helper
        # and unpickles what it finds. The store decides what is cached (liverseg_core/artifacts/artifact.py).
        @task(name=stage.__name__, description=stage.__doc__, cache_policy=NO_CACHE, persist_result=False)
        def run(context: Context, *inputs: Any) -> Any:
            record = stage(context, *inputs)
            return Completed(name="Cached", data=record) if record["cached"] else record

        return run

    def call(context: Context, *inputs: Any) -> Record:
        from prefect.client.schemas.objects import State

        name = run_name(stage.__name__, context)
        result = made().with_options(task_run_name=name)(context, *inputs)
        return cast(Record, result.result() if isinstance(result, State) else result)

    return call
