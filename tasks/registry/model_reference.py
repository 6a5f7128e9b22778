"""What a person calls a model: a registered version, a run, or a folder."""

import hashlib
from pathlib import Path

from liverseg_core.artifacts.location import in_bucket
from liverseg_core.config import Settings
from liverseg_core.environment import user_cache
from liverseg_core.errors import LiversegError
from tasks.registry.place import is_tracked


def resolve_model(settings: Settings, reference: str) -> Path:
    """The model's folder on this machine.

    Raises:
        LiversegError: LS291 when there is no such model; LS401 when MLflow fails, LS503 when a registered
            model's files are not the ones that were registered.
    """
    if not reference.startswith(("models:/", "runs:/")):
        if not Path(reference).is_dir():
            raise _no_model(reference)
        return Path(reference)
    from tasks.registry.tracking import connect_patiently
    from tasks.registry.versions import fetch_model

    if not is_tracked(settings):
        raise _no_model(reference)
    connect_patiently(settings)
    kept = user_cache() / "models" if in_bucket(settings.store) else Path(settings.store) / "fetched"
    return fetch_model(reference, kept)


def weights_digest(folder: Path) -> str:
    """What names a model's weights, whatever the model is called.

    Raises:
        LiversegError: LS291 when the folder holds none.
    """
    try:
        with (folder / "model.safetensors").open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]
    except OSError:
        raise _no_model(str(folder)) from None


def _no_model(reference: str) -> LiversegError:
    return LiversegError(
        "LS291",
        f"there is no model {reference}",
        "models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID or a model's folder",
        "See `liverseg models list`",
    )
