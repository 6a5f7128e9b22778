"""A network that was never trained and takes a moment, for tests.

With seed 8 its labels are of all classes.
"""

from pathlib import Path

from liverseg_core.config import IngestConfig, NetworkConfig
from liverseg_core.models.model import ModelSpec, save_model
from liverseg_core.models.networks import build_network

NETWORK = NetworkConfig(channels=(4, 8))


def tiny_spec(patch: int, spacing_mm: float | None, data_key: str = "none") -> ModelSpec:
    """What its model's folder says of it.

    Args:
        patch: Voxels of a window, along each axis.
        spacing_mm: Along each axis, or each scan's own.
        data_key: Of what it would have been trained on.
    """
    return ModelSpec(
        network=NETWORK,
        activation="softmax",
        patch_size=(patch, patch, patch),
        window_hu=(-200, 300),
        ingest=IngestConfig(spacing_mm=None if spacing_mm is None else (spacing_mm,) * 3),
        data_key=data_key,
    )


def write_tiny_model(folder: Path, spec: ModelSpec, seed: int = 8) -> Path:
    """Its model's folder, which is made unless it is there."""
    folder.mkdir(exist_ok=True)
    save_model(folder, build_network(NETWORK, seed), spec)
    return folder
