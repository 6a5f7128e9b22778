"""A case's fingerprint, gathered slab by slab while it is written.

Intensity percentiles, voxel counts, bounding boxes, and for each class a bounded, seeded sample of voxel
positions, so that a patch sampler never scans a volume.
"""

import hashlib
from typing import Any

import numba
import numpy as np
from jaxtyping import Float64, Int16, Int64, UInt8

from liverseg_core.arrays import Positions, Shape
from liverseg_core.cases.intensity import body_facts, intensity
from liverseg_core.classes import N_CLASSES

ImageSlab = Int16[np.ndarray, "z y x"]
LabelSlab = UInt8[np.ndarray, "z y x"]
Priorities = Float64[np.ndarray, " n"]
Ranks = Int64[np.ndarray, " m"]


class Fingerprint:
    """Accumulates over slabs of a volume of a known shape.

    Args:
        shape: The whole volume (x, y, z).
        positions_per_class: How many positions to keep for each class.
    """

    def __init__(self, shape: Shape, positions_per_class: int) -> None:
        self.shape = shape
        self.keep = positions_per_class
        self.histogram: Int64[np.ndarray, "classes 65536"] = np.zeros((N_CLASSES, 65536), np.int64)
        self.boxes = np.tile(np.array([2**31 - 1, -1], np.int64), (N_CLASSES, 3, 1))
        self.digests: dict[int, bytes] = {}  # by slab, since slabs come from either end
        self.samples: list[list[tuple[Priorities, Positions]]] = [[] for _ in range(N_CLASSES)]

    def add(self, start: int, image: ImageSlab, label: LabelSlab | None) -> None:
        """Take in the slab whose first plane is z = `start`."""
        if label is None:
            label = np.zeros(image.shape, np.uint8)
        self.digests[start] = hashlib.sha256(image[len(image) // 2].tobytes()).digest()
        rng = np.random.default_rng([start, *self.shape])
        for c, in_rows in enumerate(_tally(image, label, start, self.histogram, self.boxes)):
            if in_rows.any():
                self._sample(c, start, label, in_rows.cumsum(), rng)

    def _sample(
        self,
        c: int,
        start: int,
        label: LabelSlab,
        up_to_row: Int64[np.ndarray, " r"],
        rng: np.random.Generator,
    ) -> None:
        """Give voxels random priorities and keep the lowest: a uniform sample whatever the slabs."""
        if c == 0:  # nearly every voxel: draw candidates instead of one number for each
            flat = label.reshape(-1)
            share = flat.size / np.prod(self.shape, dtype=np.int64)
            drawn = rng.integers(0, flat.size, int(np.ceil(2 * self.keep * share)))
            found = np.unique(drawn[flat[drawn] == 0])
            best, priority = _draw(rng, len(found), self.keep)
            z, y, x = np.unravel_index(found[best], label.shape)
        else:
            best, priority = _draw(rng, int(up_to_row[-1]), self.keep)
            z, y, x = _nth_of_class(label, c, up_to_row, best)
        self.samples[c].append((priority, np.stack([x, y, z + start], axis=1).astype(np.int32)))

    def positions(self) -> dict[int, Positions]:
        """Class → sampled voxel indices (x, y, z), sorted."""
        result = {}
        for c, parts in enumerate(self.samples):
            priority = np.concatenate([np.empty(0), *(part[0] for part in parts)])
            voxels = np.concatenate([np.empty((0, 3), np.int32), *(part[1] for part in parts)])
            chosen = voxels[np.argsort(priority, kind="stable")[: self.keep]]
            result[c] = chosen[np.lexsort(chosen.T)]
        return result

    def facts(self) -> dict[str, Any]:
        """The fingerprint as plain JSON values; intensities in HU, boxes as [low, high) voxel indices."""
        everything = self.histogram.sum(axis=0)
        boxes = [
            [[int(low), int(high) + 1] for low, high in box] if box[0, 1] >= 0 else None for box in self.boxes
        ]
        content = hashlib.sha256(b"".join(self.digests[start] for start in sorted(self.digests)))
        content.update(everything.tobytes())
        return {
            "voxels": self.histogram.sum(axis=1).tolist(),
            "boxes": boxes,
            **body_facts(everything),
            "liver_hu": intensity(self.histogram[1]),
            "tumour_hu": intensity(self.histogram[2]),
            "content": content.hexdigest()[:32],
        }


def _draw(rng: np.random.Generator, count: int, keep: int) -> tuple[Ranks, Priorities]:
    """Of `count` uniform random priorities the lowest, ascending, and whose they are; no others are drawn.

    Source: Devroye, Non-uniform random variate generation (1986), V.3.1: ordered uniforms by their spacings.
    """
    kept = min(keep, count)
    below = rng.standard_exponential(kept).cumsum()
    above = rng.standard_gamma(count + 1 - kept)
    return rng.choice(count, kept, replace=False), below / (below[-1:].sum() + above)


@numba.njit(cache=True, nogil=True)
def _tally(image, label, start, histogram, boxes):  # type: ignore[no-untyped-def]  # numba infers
    """Fill the histogram and the boxes; returns how many voxels of each class each row holds."""
    planes, rows, columns = image.shape
    counts = np.empty((N_CLASSES, planes * rows), np.int64)
    for k in range(planes):
        for j in range(rows):
            values, classes = image[k, j], label[k, j]
            in_row = counts[:, k * rows + j]
            seen = np.uint8(0)
            for i in range(columns):
                seen |= classes[i]
            if seen == 0:  # most rows
                in_row[0], in_row[1], in_row[2] = columns, 0, 0
                for i in range(columns):
                    histogram[0, np.int64(values[i]) + 32768] += 1
                continue
            liver, tumour = 0, 0
            for i in range(columns):
                liver += classes[i] == 1
                tumour += classes[i] == 2
            in_row[0], in_row[1], in_row[2] = columns - liver - tumour, liver, tumour
            for i in range(columns):
                histogram[classes[i], np.int64(values[i]) + 32768] += 1
            for c in range(1, N_CLASSES):
                if in_row[c]:
                    first, last = 0, columns - 1
                    while classes[first] != c:
                        first += 1
                    while classes[last] != c:
                        last -= 1
                    for axis, (low, high) in enumerate(((first, last), (j, j), (k + start, k + start))):
                        boxes[c, axis, 0] = min(boxes[c, axis, 0], low)
                        boxes[c, axis, 1] = max(boxes[c, axis, 1], high)
    return counts


@numba.njit(cache=True, nogil=True)
def _nth_of_class(label, c, up_to_row, ranks):  # type: ignore[no-untyped-def]
    """Where (z, y, x) some voxels of a class lie, each named by its rank among them in the slab's order.

    `up_to_row` counts the voxels of the class up to the end of each row.
    """
    rows = label.shape[1]
    found = np.empty((3, ranks.size), np.int64)
    for n in range(ranks.size):
        row = np.searchsorted(up_to_row, ranks[n], side="right")
        k, j = row // rows, row % rows
        left = ranks[n] - (up_to_row[row - 1] if row else 0)
        i = 0
        while left or label[k, j, i] != c:
            left -= label[k, j, i] == c
            i += 1
        found[0, n], found[1, n], found[2, n] = k, j, i
    return found
