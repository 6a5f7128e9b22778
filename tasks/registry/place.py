"""Where runs and versions are kept: a server that was named, or the database of a store in a folder."""

import os
from pathlib import Path

from liverseg_core.artifacts.location import in_bucket
from liverseg_core.config import Settings
from liverseg_core.errors import LiversegError
from tasks.registry.files import DATABASE


def is_tracked(settings: Settings) -> bool:
    """Whether there is a tracking store to ask; connecting to a local one would make it."""
    uri = settings.register_.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    return uri is not None or (Path(settings.store) / DATABASE).exists()


def require_tracking(tracking_uri: str | None, store: str | Path) -> None:
    """Refuse a store that can hold no tracking database while no tracking server is named.

    Raises:
        LiversegError: LS214.
    """
    if not tracking_uri and not os.environ.get("MLFLOW_TRACKING_URI") and in_bucket(store):
        raise LiversegError(
            "LS214",
            f"the store {store} can hold no tracking database, and none is named",
            "an MLflow server or database",
            "Set register.tracking_uri, to http://… of a server or to sqlite:///mlflow.db",
        )
