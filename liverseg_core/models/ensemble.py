"""Several models as one: a model folder like any other, whose network averages its members' probabilities."""

from collections.abc import Sequence
from pathlib import Path

from liverseg_core.artifacts.artifact import Facts, digest_json
from liverseg_core.errors import LiversegError
from liverseg_core.models.known_data import united, write_seen
from liverseg_core.models.model import load_model, save_model
from liverseg_core.models.networks import Ensemble


def combine(folders: Sequence[Path], folder: Path) -> Facts:
    """Write the ensemble of these models.

    Args:
        folders: Model folders of one kind: the same network, patch size, window and spacing.
        folder: Receives `model.safetensors`, `model.json` and what the members have seen.

    Raises:
        LiversegError: LS276 when they are not of one kind; what `load_model` raises.
    """
    models = [load_model(path, "cpu") for path in folders]
    first = models[0].spec
    for path, model in zip(folders, models, strict=True):
        if model.spec.model_copy(update={"data_key": first.data_key}) != first or first.members > 1:
            raise LiversegError(
                "LS276",
                f"the models in {folders[0]} and {path} are not of one kind",
                "single models with the same network, patch size, window and spacing",
                "Train the folds with the same settings",
            )
    data_key = digest_json([model.spec.data_key for model in models])[:32]
    spec = first.model_copy(update={"members": len(models), "data_key": data_key})
    if (seen := united(folders)) is not None:
        write_seen(folder, seen)
    save_model(folder, Ensemble([model.network for model in models], first.activation), spec)
    return {"members": len(models)}
