"""What every stage gets: the settings, the store, how to map over cases, and whom to tell."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from liverseg_core.config import Settings
from liverseg_core.runners import Runner

Record = dict[str, Any]
"""A stage's small JSON result; `cached` says whether anything had to be made."""


class Report(Protocol):
    """Whoever watches the stages."""

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        """A stage has done so much of its work."""

    def finished(self, stage: str, note: str, cached: bool) -> None:
        """A stage is done."""


@dataclass(frozen=True)
class Context:
    """Passed from stage to stage; holds no voxels."""

    settings: Settings
    open_runner: Callable[[], AbstractContextManager[Runner]]
    """Starts the workers; only called when there is a case to make."""
    report: Report

    @property
    def store(self) -> Path:
        """The store's root folder."""
        return Path(self.settings.store)
