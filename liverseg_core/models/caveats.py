"""What a model's settings alone imply for the volumes that it gives."""

import json
from collections.abc import Iterator
from pathlib import Path

from liverseg_core.config import IngestConfig


def caveats_of(model: Path) -> list[str]:
    """As `caveats`, of a model's folder; torch, which `load_model` imports, is not needed for it."""
    spec = json.loads((model / "model.json").read_text())
    return list(caveats(IngestConfig.model_validate(spec["ingest"])))


def caveats(ingest: IngestConfig) -> Iterator[str]:
    """Sentences on volumes, for models that learnt from coarser labels than scans have.

    Args:
        ingest: Of the model's spec.
    """
    if ingest.spacing_mm is not None or ingest.shrink <= 1:
        return
    yield (
        f"It learnt from labels at {ingest.shrink:g} times the scans' spacing, where small tumours are rough "
        "and the smallest may be gone."
    )
    if ingest.label_interpolation == "vote" and ingest.shrink % 2 == 0:
        # A voxel's middle lies between voxels then: half of them often are of a class, and half are not.
        yield (
            "Where classes had equal votes in these labels, tumour won over liver and liver over background: "
            "its volumes tend to be too large."
        )
