"""What a predicted label is worth: overlap, surfaces, lesions, volumes and tumour burden of a case at once.

Records of cases merge into those of a set: counts of voxels (`overlap.py`) and lesions (`lesions.py`) and the
errors of tumour burden add up; distances between surfaces stay by case, and a set has their mean. What is not
defined, such as a distance to an empty mask, is null and left out of means, whose `n` says how many cases
they are of.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from liverseg_core.arrays import Label, Spacing
from liverseg_core.evaluation import glossary
from liverseg_core.evaluation.lesion_matching import find_lesions
from liverseg_core.evaluation.lesions import Lesions
from liverseg_core.evaluation.official import all_distances
from liverseg_core.evaluation.overlap import GROUPS, Overlap, confusion, count, mask_of, union_box
from liverseg_core.evaluation.surface import SurfaceDistances

__all__ = [
    "GROUPS",
    "BurdenError",
    "CaseScore",
    "Overlap",
    "confusion",
    "count",
    "score_case",
    "summarise",
]


@dataclass(frozen=True)
class BurdenError:
    """Errors of tumour burden, tumour / liver (tumours included), over cases with a liver in both labels."""

    n: int = 0
    squares: float = 0.0
    largest: float = 0.0

    def __add__(self, other: "BurdenError") -> "BurdenError":
        return BurdenError(self.n + other.n, self.squares + other.squares, max(self.largest, other.largest))

    @classmethod
    def of(cls, error: float | None) -> "BurdenError":
        """One case's; nothing where it is not defined."""
        return cls() if error is None else cls(1, error**2, abs(error))

    def record(self) -> dict[str, Any]:
        """Plain JSON values: root of the mean square, largest size of an error, number of cases."""
        rmse, largest = (math.sqrt(self.squares / self.n), self.largest) if self.n else (None, None)
        return {"rmse": rmse, "max_error": largest, "n": self.n}


@dataclass(frozen=True)
class CaseScore:
    """What one case's prediction is worth: counts and surface distances by class group, lesions."""

    case: str
    spacing_mm: Spacing
    overlaps: Mapping[str, Overlap]
    surfaces: Mapping[str, SurfaceDistances] = field(
        default_factory=lambda: dict.fromkeys(GROUPS, SurfaceDistances())
    )
    lesions: Lesions = field(default_factory=Lesions)
    nsd_tolerance_mm: float = glossary.TOLERANCE_MM

    def record(self) -> dict[str, Any]:
        """Plain JSON values: measures and counts by class group, null where a measure is undefined."""
        return {
            "case": self.case,
            "spacing_mm": list(self.spacing_mm),
            "nsd_tolerance_mm": self.nsd_tolerance_mm,
            **{name: {**self.measures(name), "voxels": asdict(self.overlaps[name])} for name in GROUPS},
            "lesions": self.lesions.record(),
            "burden": self.burden(),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "CaseScore":
        """Read back what `record` gave; what is not stored follows from the counts."""
        x, y, z = record["spacing_mm"]
        tolerance_mm = record["nsd_tolerance_mm"]
        overlaps = {name: Overlap(**record[name]["voxels"]) for name in GROUPS}
        keys = {part: part for part in asdict(SurfaceDistances())} | {"nsd": _nsd(tolerance_mm)}
        surfaces = {
            name: SurfaceDistances(**{part: record[name][key] for part, key in keys.items()})
            for name in GROUPS
        }
        lesions = Lesions.from_record(record["lesions"])
        return cls(record["case"], (x, y, z), overlaps, surfaces, lesions, tolerance_mm)

    def measures(self, group: str) -> dict[str, float | None]:
        """The `glossary.measures` of a class group."""
        overlap, voxel_ml = self.overlaps[group], math.prod(self.spacing_mm) / 1000
        found = {name: _null(getattr(overlap, name)) for name in ("dice", "dice_lits", "voe", "rvd")}
        volumes = {
            "volume_ml": overlap.prediction * voxel_ml,
            "reference_volume_ml": overlap.reference * voxel_ml,
        }
        surfaces = asdict(self.surfaces[group])
        known = {**found, **surfaces, _nsd(self.nsd_tolerance_mm): surfaces["nsd"], **volumes}
        return {name: known[name] for name in glossary.measures(self.nsd_tolerance_mm)}

    def burden(self) -> dict[str, float | None]:
        """Tumour / liver in the prediction and in the reference, and prediction − reference."""
        liver, tumour = self.overlaps["liver"], self.overlaps["tumour"]
        ours = tumour.prediction / liver.prediction if liver.prediction else None
        true = tumour.reference / liver.reference if liver.reference else None
        error = None if ours is None or true is None else ours - true
        return {"prediction": ours, "reference": true, "error": error}


def score_case(
    case: str,
    prediction: Label,
    reference: Label,
    spacing_mm: Spacing,
    nsd_tolerance_mm: float = glossary.TOLERANCE_MM,
) -> CaseScore:
    """Score one prediction against its reference, both on the same grid.

    Args:
        case: The case's name.
        prediction: Labels 0, 1, 2.
        reference: Labels 0, 1, 2, of the same shape.
        spacing_mm: Size of a voxel along each axis.
        nsd_tolerance_mm: What the normalised surface distance forgives.

    Raises:
        ValueError: When the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"shapes differ: {prediction.shape} and {reference.shape}")
    box = union_box(prediction, reference)  # of both livers: what is beyond is background in both
    ours, true = np.asfortranarray(prediction[box]), np.asfortranarray(reference[box])
    masks = {name: (mask_of(ours, classes), mask_of(true, classes)) for name, classes in GROUPS.items()}
    return CaseScore(
        case,
        spacing_mm,
        count(ours, true),
        {
            name: all_distances(predicted, reference, spacing_mm, nsd_tolerance_mm)
            for name, (predicted, reference) in masks.items()
        },
        find_lesions(*masks["tumour"], spacing_mm),
        nsd_tolerance_mm,
    )


def summarise(scores: Sequence[CaseScore]) -> dict[str, Any]:
    """Summarise a set of cases, as plain JSON values.

    Returns:
        For each class group the mean of each of the `glossary.measures` over the cases that define it;
        `spread`, for each measure mean, median, standard deviation (n − 1) and number of cases; and
        `policies` of Dice: `nan` and `lits` as in `spread`, and `pooled` the set's one Dice, as its mean.
        `lesions` of all cases pooled, and the errors of tumour `burden`.
    """
    errors = (score.burden()["error"] for score in scores)
    return {
        "cases": len(scores),
        **{name: _summary(name, scores) for name in GROUPS},
        "lesions": sum((score.lesions for score in scores), Lesions()).summary(),
        "burden": sum(map(BurdenError.of, errors), BurdenError()).record(),
    }


def _summary(group: str, scores: Sequence[CaseScore]) -> dict[str, Any]:
    rows = [score.measures(group) for score in scores]
    tolerance_mm = scores[0].nsd_tolerance_mm if scores else glossary.TOLERANCE_MM
    spread = {name: _spread(row[name] for row in rows) for name in glossary.measures(tolerance_mm)}
    pooled = sum((score.overlaps[group] for score in scores), Overlap()).dice
    return {
        **{name: found["mean"] for name, found in spread.items()},
        "spread": spread,
        "policies": {
            "nan": spread["dice"],
            "lits": spread["dice_lits"],
            "pooled": {"mean": _null(pooled), "n": len(scores)},
        },
    }


def _spread(values: Iterable[float | None]) -> dict[str, Any]:
    defined = np.array([value for value in values if value is not None], np.float64)
    return {
        "mean": float(defined.mean()) if defined.size else None,
        "median": float(np.median(defined)) if defined.size else None,
        "sd": float(defined.std(ddof=1)) if defined.size > 1 else None,
        "n": int(defined.size),
    }


def _nsd(tolerance_mm: float) -> str:
    return glossary.nsd_term(tolerance_mm).name


def _null(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(value) else value
