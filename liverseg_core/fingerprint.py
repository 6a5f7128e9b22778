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
from liverseg_core.resample import N_CLASSES

BODY_HU = -500
PERCENTILES = (0.5, 1, 5, 50, 95, 99, 99.5)
LOWEST = np.iinfo(np.int16).min

ImageSlab = Int16[np.ndarray, "z y x"]
LabelSlab = UInt8[np.ndarray, "z y x"]


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
        self.samples: list[list[tuple[Float64[np.ndarray, " n"], Positions]]] = [[] for _ in range(N_CLASSES)]

    def add(self, start: int, image: ImageSlab, label: LabelSlab | None) -> None:
        """Take in the slab whose first plane is z = `start`."""
        if label is None:
            label = np.zeros(image.shape, np.uint8)
        before = self.histogram.sum(axis=1)
        _tally(image, label, start, self.histogram, self.boxes)
        self.digests[start] = hashlib.sha256(image[:: max(1, len(image) // 4)].tobytes()).digest()
        rng = np.random.default_rng([start, *self.shape])
        for c, count in enumerate(self.histogram.sum(axis=1) - before):
            if count:
                self._sample(c, start, label, rng)

    def _sample(self, c: int, start: int, label: LabelSlab, rng: np.random.Generator) -> None:
        """Give voxels random priorities and keep the lowest: a uniform sample whatever the slabs."""
        flat = label.reshape(-1)
        if c == 0:  # nearly every voxel: draw candidates instead of listing them all
            share = flat.size / np.prod(self.shape, dtype=np.int64)
            drawn = rng.integers(0, flat.size, int(np.ceil(2 * self.keep * share)))
            found = np.unique(drawn[flat[drawn] == 0])
        else:
            found = np.flatnonzero(flat == c)
        priority = rng.random(len(found))
        best = _lowest(priority, self.keep)
        z, y, x = np.unravel_index(found[best], label.shape)
        self.samples[c].append((priority[best], np.stack([x, y, z + start], axis=1).astype(np.int32)))

    def positions(self) -> dict[int, Positions]:
        """Class → sampled voxel indices (x, y, z), sorted."""
        result = {}
        for c, parts in enumerate(self.samples):
            priority = np.concatenate([np.empty(0), *(part[0] for part in parts)])
            voxels = np.concatenate([np.empty((0, 3), np.int32), *(part[1] for part in parts)])
            chosen = voxels[_lowest(priority, self.keep)]
            result[c] = chosen[np.lexsort(chosen.T)]
        return result

    def facts(self) -> dict[str, Any]:
        """The fingerprint as plain JSON values; intensities in HU, boxes as [low, high) voxel indices."""
        values = np.arange(LOWEST, -LOWEST)
        everything = self.histogram.sum(axis=0)
        body = np.where(values > BODY_HU, everything, 0)
        boxes = [
            [[int(low), int(high) + 1] for low, high in box] if box[0, 1] >= 0 else None for box in self.boxes
        ]
        content = hashlib.sha256(b"".join(self.digests[start] for start in sorted(self.digests)))
        content.update(everything.tobytes())
        return {
            "voxels": self.histogram.sum(axis=1).tolist(),
            "boxes": boxes,
            "body_voxels": int(body.sum()),
            "body_hu": _intensity(body),
            "liver_hu": _intensity(self.histogram[1]),
            "tumour_hu": _intensity(self.histogram[2]),
            "content": content.hexdigest()[:32],
        }


def _lowest(values: Float64[np.ndarray, " n"], count: int) -> Int64[np.ndarray, " m"]:
    """Where the lowest values are, in no order."""
    return np.argpartition(values, count)[:count] if count < len(values) else np.arange(len(values))


def _intensity(histogram: Int64[np.ndarray, " 65536"]) -> dict[str, Any] | None:
    count = int(histogram.sum())
    if count == 0:
        return None
    values = np.arange(LOWEST, -LOWEST)
    mean = float((values * histogram).sum() / count)
    std = float(np.sqrt((histogram * (values - mean) ** 2).sum() / count))
    below = np.cumsum(histogram)
    at = np.searchsorted(below, np.array(PERCENTILES) / 100 * count)
    percentiles = {
        f"p{p:g}": int(values[min(i, len(values) - 1)]) for p, i in zip(PERCENTILES, at, strict=True)
    }
    return {"mean": round(mean, 3), "std": round(std, 3), **percentiles}


@numba.njit(cache=True, nogil=True)
def _tally(image, label, start, histogram, boxes):  # type: ignore[no-untyped-def]  # numba infers
    for k in range(image.shape[0]):
        for j in range(image.shape[1]):
            for i in range(image.shape[2]):
                c = label[k, j, i]
                histogram[c, np.int64(image[k, j, i]) + 32768] += 1
                if c:
                    for axis, at in enumerate((i, j, k + start)):
                        boxes[c, axis, 0] = min(boxes[c, axis, 0], at)
                        boxes[c, axis, 1] = max(boxes[c, axis, 1], at)
