"""Which predicted lesions and which of the reference are the same, merges and splits included.

A lesion is a 6-connected component. One predicted lesion may cover several of the reference (a merge), and
several may cover one (a split), so matches are between groups of lesions. Pairs that overlap are taken by the
voxels they share, most first and of equals the smaller pair: two lesions without a match begin one, and a
lesion without a match joins its partner's where that raises the match's IoU. So a prediction that only grazes
a lesion does not spoil that lesion's match, and every pair with an IoU above 0.5 is matched, whatever lies
around it.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import cc3d
import numpy as np
from jaxtyping import Int64, Integer

from liverseg_core.arrays import Spacing
from liverseg_core.evaluation.lesions import CRITERIA, MEASURED, SIZES, Detection, Lesions, Match
from liverseg_core.evaluation.overlap import Box, Mask, Overlap, union_box
from liverseg_core.evaluation.surface import surface_distances

MATCH_IOU = 0.5

Shared = Mapping[tuple[int, int], int]
"""Voxels that a predicted and a reference lesion share, by their numbers."""
PerLesion = Int64[np.ndarray, " n"]
"""By the lesion's number; 0 is what is no lesion."""
Partners = defaultdict[int, list[tuple[int, int]]]
"""By lesion, those of the other side that share voxels with it, and how many."""
SIDES = PREDICTION, REFERENCE = 0, 1


def _shares() -> tuple[Counter[int], Counter[int]]:
    return Counter(), Counter()


@dataclass
class Group:
    """Lesions matched with each other, by their numbers; it grows while matching."""

    overlap: Overlap
    lesions: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))
    """Predictions, references."""
    within: tuple[Counter[int], Counter[int]] = field(default_factory=_shares)
    """Voxels that a prediction shares with the group's references, and a reference with its predictions."""

    @property
    def predictions(self) -> list[int]:
        return self.lesions[PREDICTION]

    @property
    def references(self) -> list[int]:
        return self.lesions[REFERENCE]


@dataclass(frozen=True)
class _Side:
    """The lesions of one mask: a number in each voxel; each one's voxels, bounding box and size class."""

    components: Integer[np.ndarray, "x y z"]
    voxels: PerLesion
    boxes: Integer[np.ndarray, "n 6"]
    classes: PerLesion

    @classmethod
    def of(cls, mask: Mask, voxel_mm3: float) -> "_Side":
        components = cc3d.connected_components(mask, connectivity=6)
        found = cc3d.statistics(components, no_slice_conversion=True)
        voxels = found["voxel_counts"].astype(np.int64)
        diameters_mm = np.cbrt(voxels * voxel_mm3 * 6 / math.pi)
        classes = np.searchsorted(list(SIZES.values()), diameters_mm, side="right") - 1
        return cls(components, voxels, found["bounding_boxes"], classes)

    def by_size(self, numbers: Iterable[int]) -> list[int]:
        """How many of some lesions are in each size class."""
        classes = self.classes[sorted(set(numbers))]
        return [int(n) for n in np.bincount(classes, minlength=len(SIZES))]

    @property
    def numbers(self) -> range:
        return range(1, len(self.voxels))


def find_lesions(prediction: Mask, reference: Mask, spacing_mm: Spacing) -> Lesions:
    """Match the lesions of a prediction with those of its reference, and count them.

    Args:
        prediction: Where tumour is predicted.
        reference: Where tumour is, of the same shape.
        spacing_mm: Size of a voxel along each axis.
    """
    box = union_box(prediction, reference)
    if not prediction[box].size:
        return Lesions()
    # Numbers go by the order in memory, and equal claims by numbers.
    masks = (np.asfortranarray(mask[box]) for mask in (prediction, reference))
    predicted, true = (_Side.of(mask, math.prod(spacing_mm)) for mask in masks)
    shared = _shared(predicted, true)
    groups = match_lesions(shared, predicted.voxels, true.voxels)
    matched = [group for group in groups if group.overlap.jaccard > MATCH_IOU]
    correct = {"iou_50": [p for group in matched for p in group.predictions], "iou_0": [p for p, _ in shared]}
    detected = {"iou_50": [r for group in matched for r in group.references], "iou_0": [r for _, r in shared]}
    counts = {
        criterion: _detections(
            true.by_size(true.numbers),
            true.by_size(detected[criterion]),
            predicted.by_size(predicted.numbers),
            predicted.by_size(correct[criterion]),
        )
        for criterion in CRITERIA
    }
    return Lesions(counts, tuple(_measured(matched, predicted, true, spacing_mm)))


def _detections(*columns: list[int]) -> dict[str, Detection]:
    return {size: Detection(*row) for size, *row in zip(SIZES, *columns, strict=True)}


def match_lesions(shared: Shared, predicted: PerLesion, true: PerLesion) -> list[Group]:
    """Group lesions that are the same.

    Args:
        shared: Voxels by pair of lesions, for pairs that share any.
        predicted: Voxels of each predicted lesion, by its number.
        true: Voxels of each reference lesion.

    Example:
        >>> merge = match_lesions({(1, 1): 40, (1, 2): 30}, np.array([0, 80]), np.array([0, 40, 30]))
        >>> [(group.predictions, group.references, group.overlap.jaccard) for group in merge]
        [([1], [1, 2], 0.875)]
    """
    sizes = predicted.tolist(), true.tolist()
    partners: tuple[Partners, Partners] = defaultdict(list), defaultdict(list)
    for (p, r), voxels in shared.items():
        partners[PREDICTION][p].append((r, voxels))
        partners[REFERENCE][r].append((p, voxels))

    def claim(pair: tuple[int, int]) -> tuple[int, ...]:
        p, r = pair
        return -shared[pair], sizes[PREDICTION][p] + sizes[REFERENCE][r], p, r

    groups: list[Group] = []
    groups_of: tuple[dict[int, Group], dict[int, Group]] = {}, {}

    def join(group: Group, side: int, lesion: int) -> None:
        group.lesions[side].append(lesion)
        groups_of[side][lesion] = group
        for other, voxels in partners[side][lesion]:
            group.within[1 - side][other] += voxels

    for pair in sorted(shared, key=claim):
        with_prediction, with_reference = (groups_of[side].get(pair[side]) for side in SIDES)
        if not (with_prediction or with_reference):
            group = Group(Overlap(sizes[PREDICTION][pair[0]], sizes[REFERENCE][pair[1]], shared[pair]))
            groups.append(group)
            for side in SIDES:
                join(group, side, pair[side])
        elif not (with_prediction and with_reference):
            known = with_prediction or with_reference
            assert known
            side = REFERENCE if with_prediction else PREDICTION
            lesion = pair[side]
            if _grow(known, side, sizes[side][lesion], known.within[side][lesion]):
                join(known, side, lesion)
    return groups


def _grow(group: Group, side: int, size: int, gained: int) -> bool:
    """Whether a lesion raises the group's IoU; then its voxels are part of it."""
    more = Overlap(size, 0, gained) if side == PREDICTION else Overlap(0, size, gained)
    grown = group.overlap + more
    raises = grown.jaccard > group.overlap.jaccard
    if raises:
        group.overlap = grown
    return raises


def _shared(predicted: _Side, true: _Side) -> dict[tuple[int, int], int]:
    both = (predicted.components > 0) & (true.components > 0)
    numbers = predicted.components[both].astype(np.int64) * len(true.voxels) + true.components[both]
    pairs, voxels = np.unique(numbers, return_counts=True)
    found = zip(*np.divmod(pairs, len(true.voxels)), voxels, strict=True)
    return {(int(p), int(r)): int(n) for p, r, n in found}


def _measured(groups: Sequence[Group], predicted: _Side, true: _Side, spacing_mm: Spacing) -> Iterator[Match]:
    largest = sorted(range(len(groups)), key=lambda n: -groups[n].overlap.both)[:MEASURED]
    assd_mm = {n: _assd_mm(groups[n], predicted, true, spacing_mm) for n in largest}
    for n, group in enumerate(groups):
        overlap = group.overlap
        counts = len(group.predictions), len(group.references)
        yield Match(*counts, overlap.dice, overlap.rvd, assd_mm.get(n))


def _assd_mm(group: Group, predicted: _Side, true: _Side, spacing_mm: Spacing) -> float | None:
    boxes = np.concatenate([predicted.boxes[group.predictions], true.boxes[group.references]])
    box = _around(boxes)
    masks = (
        np.isin(predicted.components[box], group.predictions),
        np.isin(true.components[box], group.references),
    )
    return surface_distances(*masks, spacing_mm).assd_mm


def _around(boxes: Integer[np.ndarray, "n 6"]) -> Box:
    """What holds all boxes and a voxel around them: a surface ends at the volume's border, not at a box's."""
    boxes = boxes.astype(np.int64)  # unsigned: nothing lies before 0
    lows, highs = boxes[:, ::2].min(axis=0), boxes[:, 1::2].max(axis=0)
    x, y, z = (slice(max(0, int(low) - 1), int(high) + 2) for low, high in zip(lows, highs, strict=True))
    return x, y, z
