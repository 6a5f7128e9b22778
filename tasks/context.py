"""What every stage gets: the settings, the store, how to map over cases, and whom to tell."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.artifacts.location import open_store
from liverseg_core.artifacts.produce import Store
from liverseg_core.artifacts.stages import INGEST
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
    def store(self) -> Store:
        """Where artifacts live."""
        return open_store(self.settings.store, self.settings.storage)


def fold_contexts(context: Context) -> list[Context]:
    """A context for each of the folds that the settings ask for; without folds, this one."""
    settings = context.settings
    if settings.split.fold != "all":
        return [context]
    splits = [settings.split.model_copy(update={"fold": k}) for k in range(settings.split.folds)]
    return [replace(context, settings=settings.model_copy(update={"split": split})) for split in splits]


def fetch_cases(context: Context, cases: Sequence[Record]) -> dict[str, Path]:
    """The folders of stored cases on this machine, by name; from a store elsewhere they are copied once."""
    store, folders = context.store, {}
    for done, case in enumerate(cases, 1):
        folders[case["case"]] = store.fetch(INGEST, case["key"])
        if not isinstance(store, LocalStore):
            context.report.progress("fetch", done, len(cases), case["case"])
    return folders
