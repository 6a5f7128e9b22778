"""Score label files against label files: two files, or two folders of equally named ones."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from liverseg_core.errors import LiversegError
from liverseg_core.evaluation.glossary import TOLERANCE_MM
from liverseg_core.evaluation.measures import CaseScore, score_case, summarise
from liverseg_core.inference.doubts import NOTE, SEEN_FLAGS
from liverseg_core.volumes.geometry import corner_distance_mm
from liverseg_core.volumes.nifti import Volume, as_label, read_nifti
from liverseg_core.volumes.nifti_fields import note_in
from liverseg_core.volumes.nifti_names import ENDINGS, is_nifti, stem

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
        `{"cases": [...], "summary": {...}}` as plain JSON values: every case's `CaseScore.record`, with
        `flags` where its label says that its scan trained or chose the model, and what `summarise` makes of
        them.

    Raises:
        LiversegError: LS281 when one is a file and the other a folder; LS381 when two labels do not share
            one grid; LS360 when a case has two files in a folder, LS382 when it has no partner; LS383 when
            there is nothing to score.
    """
    pairs = list(_pairs(prediction, reference))
    scores, cases = [], []
    for done, pair in enumerate(pairs):
        if progress:
            progress(done, len(pairs), stem(pair[1].name))
        found, flags = _score(*pair, nsd_tolerance_mm)
        scores.append(found)
        cases.append({**found.record(), "flags": flags})
    return {"cases": cases, "summary": summarise(scores)}


def _score(prediction: Path, reference: Path, nsd_tolerance_mm: float) -> tuple[CaseScore, list[str]]:
    predicted, truth = read_nifti(prediction), read_nifti(reference)
    _check_same_grid(prediction.name, predicted, truth)
    labels, spacing_mm = (as_label(predicted), as_label(truth)), truth.header.grid.spacing_mm
    note = note_in(predicted.header.raw)
    flags = [flag for flag in SEEN_FLAGS if note == f"{NOTE}{flag}"]
    return score_case(stem(reference.name), *labels, spacing_mm, nsd_tolerance_mm), flags


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
            f"names that end in {' or '.join(ENDINGS)}",
            "Name the folder that holds the labels themselves",
        )
    yield from ((predicted[case], truth[case]) for case in sorted(truth))


def _labels(folder: Path) -> dict[str, Path]:
    """NIfTI files by case; hidden ones, such as the `._*` that macOS leaves behind, are none."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not is_nifti(path.name):
            continue
        other = found.setdefault(stem(path.name), path)
        if other != path:
            raise LiversegError(
                "LS360",
                f"{other} and {path} are labels of one case",
                "one file a case, whatever its ending",
                "Move one of the two out of the folder",
            )
    return found


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
