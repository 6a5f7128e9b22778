"""A model's files in a folder: in a store, fetched from a registry, or copied to wherever under any name."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from liverseg_core.artifacts.artifact import load, verify
from liverseg_core.artifacts.stages import TRAIN
from liverseg_core.errors import LiversegError

WEIGHTS = "model.safetensors"
SPEC = "model.json"
INFERENCE = "inference.json"
"""The evaluate section that a registered model was measured with, and so predicts with."""
SEEN = "seen.json"
"""The cases that it was trained and validated on, and those that the weights it started from had seen."""
MEASURED = "measured.json"
"""Between which volumes it was measured."""
FILES = (WEIGHTS, SPEC, INFERENCE, SEEN, MEASURED)


def check_model(folder: Path) -> None:
    """Check a model's files against their manifest, where there is one.

    A copy of a model is as good under another name, and with other files beside it.

    Raises:
        LiversegError: LS501 for a damaged manifest, LS502 for a file that is missing or changed.
    """
    with _not_ours_to_delete(folder):
        artifact = load(folder, renamed=True)
        if artifact:  # safetensors know no checksum: a flipped bit would be another weight
            verify(artifact, only=FILES)


def renamed_from(folder: Path) -> str | None:
    """The key of the model that a folder is a copy of under another name.

    Raises:
        LiversegError: LS501, as `check_model`.
    """
    with _not_ours_to_delete(folder):
        artifact = load(folder, renamed=True)
    if artifact is None or artifact.manifest["key"] == folder.absolute().name:
        return None
    key: str = artifact.manifest["key"]
    return key


@contextlib.contextmanager
def _not_ours_to_delete(folder: Path) -> Iterator[None]:
    """What is not in a store no command makes again: another remedy."""
    try:
        yield
    except LiversegError as error:
        if _is_stored(folder):
            raise
        remedy = "Copy the model's folder again, or name the model in its store or registry"
        raise LiversegError(error.code, error.what, error.allowed, remedy) from None


def _is_stored(folder: Path) -> bool:
    place = folder.absolute()
    return place.parent.name == TRAIN.folder and re.fullmatch(r"[0-9a-f]{32}", place.name) is not None
