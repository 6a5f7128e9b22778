"""Overlap measures as mergeable counts: empty, count, `+`, compute.

Counts add up over slabs, cases and workers without loss, so every measure is computed once, at the end, and
the Dice of the whole is the Dice of the merged parts. Three policies for a class that neither mask holds are
in use in the field, and tumour means under them are not comparable, so each is reported by its name:

- `nan`: undefined, left out of means (nnU-Net);
- `lits`: 1.0, while a false positive in a case without the class is 0 (LiTS "Dice per case");
- `pooled`: one Dice of the counts summed over the set (LiTS "Dice global").
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from liverseg_core.arrays import Label, Spacing

GROUPS: Mapping[str, tuple[int, ...]] = {"liver": (1, 2), "liver_only": (1,), "tumour": (2,)}
"""Class groups by name: the liver with its tumours (LiTS), the liver without, the tumour."""

CLASSES = 3
SLAB_VOXELS = 1 << 22
"""Voxels counted at a time: bincount widens to 64 bits, and a whole 512 × 512 × 987 scan would take 2 GB."""


@dataclass(frozen=True)
class Overlap:
    """Voxel counts of one class group in a prediction, in a reference, and in both."""

    prediction: int = 0
    reference: int = 0
    both: int = 0

    def __add__(self, other: "Overlap") -> "Overlap":
        return Overlap(
            self.prediction + other.prediction, self.reference + other.reference, self.both + other.both
        )

    @property
    def dice(self) -> float:
        """2·|P ∩ R| / (|P| + |R|); NaN where both masks are empty."""
        return _ratio(2 * self.both, self.prediction + self.reference)

    @property
    def dice_lits(self) -> float:
        """Dice where two empty masks agree perfectly: 1.0."""
        return self.dice if self.prediction + self.reference else 1.0

    @property
    def jaccard(self) -> float:
        """|P ∩ R| / |P ∪ R|; NaN where both masks are empty."""
        return _ratio(self.both, self.prediction + self.reference - self.both)

    @property
    def voe(self) -> float:
        """Volumetric overlap error, 1 − Jaccard."""
        return 1.0 - self.jaccard

    @property
    def rvd(self) -> float:
        """Relative volume difference (|P| − |R|) / |R|: positive where too much is predicted.

        NaN where the reference is empty. The public LiTS notebook reports the opposite sign.
        """
        return _ratio(self.prediction - self.reference, self.reference)


@dataclass(frozen=True)
class CaseScore:
    """What one case's prediction is worth: its counts by class group, and the size of a voxel."""

    case: str
    spacing_mm: Spacing
    overlaps: Mapping[str, Overlap]

    def record(self) -> dict[str, Any]:
        """Plain JSON values: measures and counts by class group, null where a measure is undefined."""
        groups = {name: _measures(overlap, self.voxel_ml) for name, overlap in self.overlaps.items()}
        return {"case": self.case, "spacing_mm": list(self.spacing_mm), **groups}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "CaseScore":
        """Read back what `record` gave; everything follows from the counts."""
        x, y, z = record["spacing_mm"]
        return cls(record["case"], (x, y, z), {name: Overlap(**record[name]["voxels"]) for name in GROUPS})

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres."""
        return math.prod(self.spacing_mm) / 1000


def confusion(prediction: Label, reference: Label) -> Int64[np.ndarray, "3 3"]:
    """Count voxels by (predicted class, reference class), one slab of slices at a time.

    Args:
        prediction: Labels 0, 1, 2.
        reference: Labels 0, 1, 2, of the same shape.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"shapes differ: {prediction.shape} and {reference.shape}")
    thickness = max(1, SLAB_VOXELS // max(1, math.prod(prediction.shape[:2])))
    counts = np.zeros(CLASSES * CLASSES, np.int64)
    for start in range(0, prediction.shape[2], thickness):
        slab = np.s_[:, :, start : start + thickness]
        pairs = prediction[slab] * np.uint8(CLASSES) + reference[slab]
        counts += np.bincount(pairs.ravel(order="K"), minlength=counts.size)
    return counts.reshape(CLASSES, CLASSES)


def count(prediction: Label, reference: Label) -> dict[str, Overlap]:
    """Count the overlap of every class group in one pass over a pair of labels.

    Example:
        >>> label = np.array([[[0, 1, 2]]], np.uint8)
        >>> count(label, np.minimum(label, 1))["liver"].dice
        1.0
    """
    table = confusion(prediction, reference)
    return {
        name: Overlap(
            prediction=int(table[classes, :].sum()),
            reference=int(table[:, classes].sum()),
            both=int(table[np.ix_(classes, classes)].sum()),
        )
        for name, classes in ((name, list(labels)) for name, labels in GROUPS.items())
    }


def score_case(case: str, prediction: Label, reference: Label, spacing_mm: Spacing) -> CaseScore:
    """Score one prediction against its reference, both on the same grid.

    Args:
        case: The case's name.
        prediction: Labels 0, 1, 2.
        reference: Labels 0, 1, 2, of the same shape.
        spacing_mm: Size of a voxel along each axis.
    """
    return CaseScore(case, spacing_mm, count(prediction, reference))


def volumes_ml(label: Label, spacing_mm: Spacing) -> dict[str, float]:
    """Volume of the liver, its tumours included, and of the tumours, in millilitres."""
    liver, tumour = (int(np.count_nonzero(label >= lowest)) for lowest in (1, 2))
    voxel_ml = math.prod(spacing_mm) / 1000
    return {"liver_ml": liver * voxel_ml, "tumour_ml": tumour * voxel_ml}


def summarise(scores: Sequence[CaseScore]) -> dict[str, Any]:
    """Summarise a set of cases by class group, as plain JSON values.

    Returns:
        For each class group `dice` (mean, policy `nan`), `voe`, `rvd`, `volume_ml`, `reference_volume_ml`
        (means over the cases that define them) and `policies`: under `nan` and `lits` the mean, median,
        standard deviation (n − 1) and number of cases; under `pooled` the set's one Dice, as its mean.
    """
    return {"cases": len(scores), **{name: _summary(name, scores) for name in GROUPS}}


def _measures(overlap: Overlap, voxel_ml: float) -> dict[str, Any]:
    return {
        "dice": _null(overlap.dice),
        "voe": _null(overlap.voe),
        "rvd": _null(overlap.rvd),
        "volume_ml": overlap.prediction * voxel_ml,
        "reference_volume_ml": overlap.reference * voxel_ml,
        "voxels": {"prediction": overlap.prediction, "reference": overlap.reference, "both": overlap.both},
    }


def _summary(group: str, scores: Sequence[CaseScore]) -> dict[str, Any]:
    overlaps = [score.overlaps[group] for score in scores]

    def mean(measure: Callable[[Overlap], float]) -> float | None:
        mean_value: float | None = _spread(map(measure, overlaps))["mean"]
        return mean_value

    return {
        "dice": mean(lambda overlap: overlap.dice),
        "voe": mean(lambda overlap: overlap.voe),
        "rvd": mean(lambda overlap: overlap.rvd),
        "volume_ml": _spread(s.overlaps[group].prediction * s.voxel_ml for s in scores)["mean"],
        "reference_volume_ml": _spread(s.overlaps[group].reference * s.voxel_ml for s in scores)["mean"],
        "policies": {
            "nan": _spread(overlap.dice for overlap in overlaps),
            "lits": _spread(overlap.dice_lits for overlap in overlaps),
            "pooled": {"mean": _null(sum(overlaps, Overlap()).dice), "n": len(overlaps)},
        },
    }


def _spread(values: Iterable[float]) -> dict[str, Any]:
    defined = np.array([value for value in values if not math.isnan(value)], np.float64)
    return {
        "mean": float(defined.mean()) if defined.size else None,
        "median": float(np.median(defined)) if defined.size else None,
        "sd": float(defined.std(ddof=1)) if defined.size > 1 else None,
        "n": int(defined.size),
    }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _null(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(value) else value
