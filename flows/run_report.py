"""How a flow run without a terminal says how far it is: in its log, and on its page in Prefect."""

import contextlib
import time
from collections.abc import Iterator
from typing import cast
from uuid import UUID

LOG_INTERVAL_S, BAR_INTERVAL_S = 15.0, 3.0


class RunReport:
    """A line in the log now and then, and a bar for each stage that is at work."""

    def __init__(self) -> None:
        self.due = time.monotonic() + LOG_INTERVAL_S
        self.bars: dict[str, UUID | None] = {}
        self.bar_due = 0.0

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        if time.monotonic() >= self.due:
            self.due = time.monotonic() + LOG_INTERVAL_S
            self._log(f"{stage}: {done} of {total} {note}".rstrip())
        if stage not in self.bars or done == total or time.monotonic() >= self.bar_due:
            self.bar_due = time.monotonic() + BAR_INTERVAL_S
            self.bars[stage] = _show_progress(self.bars.get(stage), stage, done / max(total, 1))

    def finished(self, stage: str, note: str, cached: bool) -> None:
        if stage in self.bars:
            _show_progress(self.bars.pop(stage), stage, 1)
        self._log(f"{stage}: {'cached: ' * cached}{note}")

    def _log(self, line: str) -> None:
        from prefect.exceptions import MissingContextError
        from prefect.logging import get_run_logger

        with contextlib.suppress(MissingContextError):
            get_run_logger().info(line)


def _show_progress(bar: UUID | None, stage: str, share: float) -> UUID | None:
    """Make or move a stage's bar; returns it. There are none outside a flow run."""
    from prefect import runtime
    from prefect.artifacts import create_progress_artifact, update_progress_artifact

    if runtime.flow_run.id is None:
        return None
    with not_insisting():
        if bar is None:
            made = create_progress_artifact(100 * share, f"liverseg-{stage}-progress", f"Progress of {stage}")
            return cast("UUID", made)
        update_progress_artifact(bar, 100 * share)
    return bar


@contextlib.contextmanager
def not_insisting() -> Iterator[None]:
    """A Prefect server that takes no artifact costs its page a line, and a warning; never the run."""
    import httpx
    from prefect.exceptions import PrefectException
    from prefect.logging import get_run_logger

    try:
        yield
    except (httpx.HTTPError, PrefectException) as error:
        get_run_logger().warning("Prefect took no artifact: %s", error)
