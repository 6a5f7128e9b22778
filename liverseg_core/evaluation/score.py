"""Score label files against label files: two files, or two folders of equally named ones."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from liverseg_core.errors import LiversegError
from liverseg_core.evaluation.glossary import TOLERANCE_MM
from liverseg_core.evaluation.measures import CaseScore, score_case, summarise
from liverseg_core.volumes.geometry import corner_distance_mm
from liverseg_core.volumes.nifti import Volume, as_label, read_nifti

SUFFIXES = (".nii.gz", ".nii")
PLACE_TOLERANCE_MM = 0.1
"""How far a corner of the grid may be off: headers round, scanners and half a voxel do not."""


Progress = Callable[[int, int, str], None]


def score(
    prediction: Path,
    reference: Path,
    progress: Progress | None = None,
    nsd_tolerance_mm: float = TOLERANCE_MM,
) -> dict[str, Any]:
    """Score predicted labels against reference labels.

    Args:
        prediction: A label NIfTI file, or a folder of them.
        reference: A label NIfTI file, or a folder of equally named ones.
        progress: Called with (done, total, case).
        nsd_tolerance_mm: What the normalised surface distance forgives.

    Returns:
        `{"cases": [...], "summary": {...}}` as plain JSON values: every case's `CaseScore.record`, and what
        `summarise` makes of them.

    Raises:
        LiversegError: LS281 when one is a file and the other a folder; LS381 when two labels do not share
            one grid; LS382 when a file has no partner; LS383 when there is nothing to score.
    """
    pairs = list(_pairs(prediction, reference))
    scores = []
    for done, pair in enumerate(pairs):
        if progress:
            progress(done, len(pairs), _case(pair[1]))
        scores.append(_score(*pair, nsd_tolerance_mm))
    return {"cases": [one.record() for one in scores], "summary": summarise(scores)}


def _score(prediction: Path, reference: Path, nsd_tolerance_mm: float) -> CaseScore:
    predicted, truth = read_nifti(prediction), read_nifti(reference)
    _check_same_grid(prediction.name, predicted, truth)
    labels, spacing_mm = (as_label(predicted), as_label(truth)), truth.header.grid.spacing_mm
    return score_case(_case(reference), *labels, spacing_mm, nsd_tolerance_mm)


def _pairs(prediction: Path, reference: Path) -> Iterator[tuple[Path, Path]]:
    if prediction.is_dir() != reference.is_dir():
        raise LiversegError(
            "LS281",
            f"{prediction} and {reference} are a file and a folder",
            "two files, or two folders",
            "Name two label files, or two folders that hold equally named ones",
        )
    if not prediction.is_dir():
        yield prediction, reference
        return
    predicted, truth = _labels(prediction), _labels(reference)
    for case in sorted(predicted.keys() ^ truth.keys()):
        alone, other = (predicted, reference) if case in predicted else (truth, prediction)
        raise LiversegError(
            "LS382",
            f"{alone[case]} has no partner in {other}",
            "equally named files in both folders",
            "Add the missing file, or move this one out of the folder",
        )
    if not truth:
        raise LiversegError(
            "LS383",
            f"no label files in {reference}",
            f"names that end in {' or '.join(SUFFIXES)}",
            "Name the folder that holds the labels themselves",
        )
    yield from ((predicted[case], truth[case]) for case in sorted(truth))


def _labels(folder: Path) -> dict[str, Path]:
    """NIfTI files by case; hidden ones, such as the `._*` that macOS leaves behind, are none."""
    files = (path for path in folder.iterdir() if path.name.endswith(SUFFIXES))
    return {_case(path): path for path in files if not path.name.startswith(".")}


def _case(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _check_same_grid(name: str, prediction: Volume, reference: Volume) -> None:
    """Raise LS381 unless both grids have one shape and their corners lie in the same places."""
    apart = corner_distance_mm(prediction.header.grid, reference.header.grid)
    if apart <= PLACE_TOLERANCE_MM:
        return
    shapes = f"shape {prediction.header.shape} against {reference.header.shape}"
    trouble = shapes if math.isinf(apart) else f"corners up to {apart:.2f} mm apart"
    raise LiversegError(
        "LS381",
        f"{name}: prediction and reference are not on one grid ({trouble})",
        "the same shape and affine",
        "Predict in the geometry of the scan that the reference was drawn on",
    )
