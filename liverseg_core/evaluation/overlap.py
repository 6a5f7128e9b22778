"""How far two labels cover the same voxels: counts that add up over slabs, cases and workers without loss.

Every measure is computed once, at the end, so that the Dice of the whole is the Dice of the merged parts.
Three policies for a class that neither mask holds are in use in the field, and tumour means under them are
not comparable, so each is reported by its name:

- `nan`: undefined, left out of means (nnU-Net);
- `lits`: 1.0, while a false positive in a case without the class is 0 (LiTS "Dice per case");
- `pooled`: one Dice of the counts summed over the set (LiTS "Dice global").
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from liverseg_core.arrays import Label

Mask = Bool[np.ndarray, "x y z"]
Box = tuple[slice, slice, slice]

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

        NaN where the reference is empty. The public LiTS notebook has (|R| − |P|) / |P|: of the opposite
        sign, and by the predicted volume, so not this value turned round.
        """
        return _ratio(self.prediction - self.reference, self.reference)


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


def mask_of(label: Label, classes: tuple[int, ...]) -> Mask:
    """Where a label is any of some classes."""
    mask: Mask = label == classes[0]
    for other in classes[1:]:
        mask |= label == other
    return mask


def union_box(prediction: Label | Mask, reference: Label | Mask) -> Box:
    """The smallest box that holds both foregrounds, and one voxel around them where the volume has one.

    Empty where there is no foreground.
    """
    both = prediction, reference
    z = _extent(np.any([label.any((0, 1)) for label in both], axis=0))
    y = _extent(np.any([label[:, :, z].any((0, 2)) for label in both], axis=0))
    x = _extent(np.any([label[:, y, z].any((1, 2)) for label in both], axis=0))
    return x, y, z


def _extent(occupied: Bool[np.ndarray, " n"]) -> slice:
    places = np.flatnonzero(occupied)
    return slice(max(0, int(places[0]) - 1), int(places[-1]) + 2) if places.size else slice(0, 0)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
