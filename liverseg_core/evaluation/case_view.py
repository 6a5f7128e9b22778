"""A scored case as pictures need it: scan, reference and prediction on the case's own grid."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from liverseg_core.arrays import Image, Label, Spacing
from liverseg_core.cases.store import Case, open_case, read_volume
from liverseg_core.cases.target import label_planes, plan_target
from liverseg_core.config import IngestConfig
from liverseg_core.volumes.nifti import Volume, read_nifti


@dataclass(frozen=True)
class CaseView:
    """One case, in canonical RAS+ order."""

    case: str
    image: Image
    """HU."""
    reference: Label | None
    prediction: Label
    spacing_mm: Spacing
    score: Mapping[str, Any]
    """From `CaseScore.record`."""


def open_view(score: Mapping[str, Any], stored: Path, predictions: Path, ingest: IngestConfig) -> CaseView:
    """Read a case and what was predicted of it; the prediction is brought to the case's grid by nearest.

    Args:
        score: The case's record from an evaluation.
        stored: The case's folder in the store.
        predictions: Folder of an evaluation's labels, each in its scan's own space.
        ingest: How the case was stored.
    """
    case = open_case(stored)
    predicted = read_native(predictions / f"{score['case']}.nii.gz", case)
    planes = label_planes(predicted, plan_target(predicted.header, ingest), "nearest")
    reference = None if case.label is None else read_volume(case.label)
    prediction = np.stack(list(planes)).T
    image, spacing_mm = read_volume(case.image), case.grid.spacing_mm
    return CaseView(case.name, image, reference, prediction, spacing_mm, score)


def read_native(path: Path, case: Case) -> Volume:
    """A label on the source's own voxels, with its header corrected as the case's was."""
    volume = read_nifti(path)
    header = volume.header.corrected(case.spacing_override_mm, case.axes_override)
    return replace(volume, header=header)
