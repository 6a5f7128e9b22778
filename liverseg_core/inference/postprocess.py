"""What becomes of a predicted label: rules that know livers, each off unless the settings ask for it.

Connected means 6-connected throughout, as the lesions of the measures are.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import cc3d
import numpy as np
from jaxtyping import Bool, Int64, Shaped

from liverseg_core.arrays import Label, Spacing
from liverseg_core.config import EvaluateConfig

PIECE = 1 << 22
"""Voxels counted at a time: bincount widens to 64 bits."""
RULES: tuple[Mapping[str, Any], ...] = tuple(
    {"largest_liver": largest, "tumour_inside_liver": inside, "smallest_lesion_ml": smallest_ml}
    for largest, inside, smallest_ml in product((False, True), (False, True), (0.0, 0.05, 0.1, 0.2, 0.5))
)
"""What `evaluate.tune` chooses from; none of them first."""
Box = tuple[slice, slice, slice]


def postprocess(label: Label, settings: EvaluateConfig, spacing_mm: Spacing) -> Label:
    """Apply the rules that are on, in this order, to labels on a scan's own grid.

    1. `largest_liver`: of the connected parts of liver and tumour together the largest stays.
    2. `tumour_inside_liver`: parts without any liver become background.
    3. `smallest_lesion_ml`: connected tumours smaller than this become liver.

    Args:
        label: 0 background, 1 liver, 2 tumour; is not changed.
        settings: Which rules are on.
        spacing_mm: Of the label's voxels.
    """
    if settings.largest_liver or settings.tumour_inside_liver:
        label = _drop_parts(label, settings)
    return drop_small_lesions(label, settings.smallest_lesion_ml, spacing_mm)


def drop_small_lesions(label: Label, smallest_ml: float, spacing_mm: Spacing) -> Label:
    """Turn tumours (6-connected components of class 2) smaller than `smallest_ml` into liver."""
    smallest = smallest_ml * 1000 / math.prod(spacing_mm)
    box = bounding_box(label == 2) if smallest > 1 else None
    if box is None:
        return label
    components = cc3d.connected_components(label[box] == 2, connectivity=6)
    small = counts(components) < smallest
    small[0] = False
    return _replaced(label, box, small[components], 1)


def worth_of_rules(prediction: Label, reference: Label, spacing_mm: Spacing) -> list[float]:
    """How good each choice of `RULES` makes a validation case: the mean Dice of liver and tumour.

    A class that neither label has counts 1 and one that is only predicted 0, so that false alarms cost.

    Args:
        prediction: Labels before any rule.
        reference: The labels to compare with.
        spacing_mm: Of both.
    """
    settings = (EvaluateConfig(**rules) for rules in RULES)
    return [_worth(postprocess(prediction, one, spacing_mm), reference) for one in settings]


def best_rules(worths: Iterable[Sequence[float]]) -> Mapping[str, Any]:
    """The rules that make the validation cases best on average.

    Of equal choices the one with fewer rules and the smaller lesion wins. Never give it test cases: what is
    chosen on them is no longer measured by them.

    Args:
        worths: What `worth_of_rules` says of each case.
    """
    total = np.sum([*worths], axis=0)
    return RULES[int(np.argmax(np.round(total, 9)))]


def bounding_box(mask: Bool[np.ndarray, "x y z"]) -> Box | None:
    """The smallest box that holds a mask; None where it is empty."""
    sides = []
    for axis in range(3):
        (there,) = np.nonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        if not there.size:
            return None
        sides.append(slice(int(there[0]), int(there[-1]) + 1))
    x, y, z = sides
    return x, y, z


def counts(components: Shaped[np.ndarray, "x y z"]) -> Int64[np.ndarray, " n"]:
    """Voxels of each component, the background's first."""
    total = np.zeros(int(components.max(initial=0)) + 1, np.int64)
    for piece in _pieces(components):
        found = np.bincount(piece)
        total[: found.size] += found
    return total


def _drop_parts(label: Label, settings: EvaluateConfig) -> Label:
    box = bounding_box(label > 0)
    if box is None:
        return label
    components = cc3d.connected_components(label[box] > 0, connectivity=6)
    sizes = counts(components)
    keep = np.ones(sizes.size, np.bool_)
    if settings.largest_liver:
        keep[1:] = False
        keep[1 + np.argmax(sizes[1:])] = True
    if settings.tumour_inside_liver:
        liver = np.zeros(sizes.size, np.bool_)
        for classes, piece in zip(_pieces(label[box]), _pieces(components), strict=True):
            liver[piece[classes == 1]] = True
        keep &= liver
    keep[0] = True
    return _replaced(label, box, ~keep[components], 0)


def _replaced(label: Label, box: Box, where: Bool[np.ndarray, "x y z"], value: int) -> Label:
    changed = label.copy(order="K")
    changed[box][where] = value
    return changed


def _pieces(volume: Shaped[np.ndarray, "x y z"]) -> Iterator[Shaped[np.ndarray, " n"]]:
    """A volume's voxels in order, some planes at a time."""
    depth = max(1, PIECE // math.prod(volume.shape[:2]))
    return (volume[:, :, z : z + depth].ravel("F") for z in range(0, volume.shape[2], depth))


def _worth(prediction: Label, reference: Label) -> float:
    return sum(_dice(prediction >= lowest, reference >= lowest) for lowest in (1, 2)) / 2


def _dice(found: Bool[np.ndarray, "x y z"], there: Bool[np.ndarray, "x y z"]) -> float:
    voxels = np.count_nonzero(found) + np.count_nonzero(there)
    return 2 * np.count_nonzero(found & there) / voxels if voxels else 1.0
