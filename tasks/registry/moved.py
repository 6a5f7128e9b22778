"""A store's artifacts lie beside its database, wherever the store was moved or copied.

MLflow writes down where they lay when their experiment was made, as an absolute path, in each run and model.
That stays as it is: of two copies, or of one folder that two machines mount at two places, none can be told
which path is right. What it means is looked up here instead, each time: it begins with the place that the
database names for an experiment, and that is the folder beside the database.

MLflow calls `open_artifacts` for each such path, wherever liverseg is installed: see pyproject.toml.
It finds this module while it is being imported itself, so nothing of MLflow's is imported here at once.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.registry.files import ARTIFACTS, DATABASE, read_only, sqlite_path

SERVERS_OWN = "_MLFLOW_SERVER_FILE_STORE"
"""How MLflow's server tells its processes which database it serves."""


def find_moved() -> None:
    """Have this process look places up anew, whether or not liverseg's entry point is installed."""
    from mlflow.tracking._tracking_service import utils

    _teach()
    utils._artifact_repos_cache.clear()  # by run: a copy's has the same id


def open_artifacts(
    artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> Any:
    """MLflow's own repository of a `file:` URI, below the database's folder if it is one of a store's."""
    import mlflow
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    _teach()
    database = sqlite_path(tracking_uri or os.environ.get(SERVERS_OWN) or mlflow.get_tracking_uri())
    if database is not None and database.name == DATABASE:
        artifact_uri = _found(artifact_uri, database.absolute())
    return LocalArtifactRepository(artifact_uri, tracking_uri, registry_uri)


def _open_path(path: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> Any:
    """The same of a plain path, which for MLflow is a URI again: "%20" in it would become a space."""
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    uri = Path(path).absolute().as_uri() if Path(path).exists() else path
    return LocalArtifactRepository(uri, tracking_uri, registry_uri)


def _teach() -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_registered_artifact_repositories

    get_registered_artifact_repositories().update({"file": open_artifacts, "": _open_path})


def _found(uri: str, database: Path) -> str:
    here = (database.parent / ARTIFACTS).as_uri()
    for recorded in _recorded(database):
        if uri == recorded or uri.startswith(f"{recorded}/"):
            return here + uri.removeprefix(recorded)
    return uri


def _recorded(database: Path) -> Iterator[str]:
    """Where the database says that a store's artifacts are."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(read_only(database)) as opened:
        for (location,) in opened.execute("SELECT DISTINCT artifact_location FROM experiments"):
            before, found, _ = str(location).rpartition(f"/{ARTIFACTS}")
            if found and location.startswith("file:"):
                yield before + found
