"""A run that finds every stage done, told without Prefect, whose temporary API takes seconds to boot."""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, cast

from flows.console import current_report
from flows.order import PLAIN, follow
from liverseg_core.artifacts.artifact import Stage
from liverseg_core.artifacts.produce import Store
from liverseg_core.config import Settings
from tasks.context import Context, Record
from tasks.ingest import ingest
from tasks.registry.place import require_tracking


class _ToDo(BaseException):
    """Something has to be made. No Exception, which a stage may take for a failure of what it makes."""


def find_everything(settings: Settings) -> dict[str, Record] | None:
    """What a run would find if every stage was done before; None where one has to be made.

    Where a Prefect API is configured, a run belongs on its pages, and nothing is looked for.

    Returns:
        One record a stage, by its name, as the flow returns them.

    Raises:
        LiversegError: What the flow would raise before it makes anything.
    """
    if os.environ.get("PREFECT_API_URL"):
        return None
    require_tracking(settings.register_.tracking_uri, settings.store)
    told = _Told()
    try:
        found = follow(_Looking(settings, _refuse, told), replace(PLAIN, ingest=ingest))
    except _ToDo:
        return None
    if _profile_has_api():
        return None
    for line in told.lines:
        current_report().finished(*line)
    return found


def _profile_has_api() -> bool:
    from prefect.settings import get_current_settings  # takes a second, which only a whole find pays

    return bool(get_current_settings().api.url)


def _refuse() -> NoReturn:
    raise _ToDo


@dataclass(frozen=True)
class _Looking(Context):
    """A context whose stages may find, and make nothing."""

    @property
    def store(self) -> Store:
        return cast(Store, _FoundOnly(super().store))


@dataclass(frozen=True)
class _FoundOnly:
    """A store in which nothing is made."""

    whole: Store

    def __str__(self) -> str:
        return str(self.whole)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)

    def staging(self, _stage: Stage, _key: str) -> AbstractContextManager[Path]:
        raise _ToDo


class _Told:
    """What stages had to say, kept until it is known that all of it holds."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, bool]] = []

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        """To look takes no time worth a bar."""

    def finished(self, stage: str, note: str, cached: bool) -> None:
        self.lines.append((stage, note, cached))
