"""How far voxels are from the nearest of others, in millimetres: exact, whatever the masks look like.

Most surfaces of a pair lie near each other, so what lies around a voxel is looked at, nearest first. The few
that nothing is near to are compared with every voxel; where those are many, too, as in noise, a distance
transform (`transform.py`) is linear in the volume. numba is imported only for it.
"""

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from liverseg_core.arrays import Spacing
from liverseg_core.evaluation.overlap import Mask

Distances = Float64[np.ndarray, " n"]
Numbers = Int64[np.ndarray, " n"]
"""Voxels, counted with x fastest."""
Places = Int64[np.ndarray, "n 3"]
"""Indices of voxels, or steps between them."""
LOOKS = (6, 18, 62, 254, 1022, 2046)
"""How many of the voxels around one have been looked at after each round; beyond is far."""
AT_ONCE = 1 << 15
"""Voxels from which is looked at a time."""
FEWEST_LOOKS = 1 << 22
"""So many are always allowed; and four a voxel of the volume, which a distance transform takes as long as."""
PAIRS = 1 << 25
"""From here on, comparing all pairs takes longer than a distance transform and importing it."""


def distances_mm(voxels: Mask, to: Mask, spacing_mm: Spacing, reach_mm: float = math.inf) -> Distances:
    """From each voxel of a mask to the nearest of another, in the order of `flat`.

    Args:
        voxels: From where.
        to: Where to, of the same shape; not empty.
        spacing_mm: Size of a voxel along each axis.
        reach_mm: What is farther may be infinite.
    """
    there = np.flatnonzero(flat(voxels))
    found = np.zeros(len(there))
    apart = np.flatnonzero(~flat(to)[there])  # what they share is 0 mm from itself
    around = _Around.of(to, spacing_mm, reach_mm)
    looks = max(FEWEST_LOOKS, 4 * to.size) / max(1, len(apart))
    undecided = []
    for start in range(0, len(apart), AT_ONCE):
        part = apart[start : start + AT_ONCE]
        found[part], left = around.nearest_mm(there[part], looks * len(part))
        undecided.append(part[left])
    far = np.concatenate([apart[:0], *undecided])
    if far.size:
        found[far] = _far(there[far], to, spacing_mm)
    return found


def flat(mask: Mask) -> Bool[np.ndarray, " n"]:
    """A mask's voxels, x fastest: a view of one that lies in memory so."""
    return mask.ravel(order="F")


@dataclass(frozen=True)
class _Around:
    """A mask with a margin of nothing, in which to look around from a voxel without leaving it."""

    voxels: Bool[np.ndarray, " n"]
    shape: tuple[int, ...]
    first: int
    """The mask's first voxel, among those with the margin."""
    strides: Int64[np.ndarray, "3"]
    jumps: Numbers
    """To the voxels around one, nearest first."""
    apart_mm: Distances
    """How far each is."""
    whole: bool
    """Whether nothing within the reach is left out."""

    @classmethod
    def of(cls, to: Mask, spacing_mm: Spacing, reach_mm: float) -> "_Around":
        steps, apart_mm = _steps(spacing_mm)
        count = int(np.searchsorted(apart_mm, reach_mm, side="right"))
        margin = np.abs(steps[:count]).max(axis=0, initial=0)
        padded = np.zeros(np.add(to.shape, 2 * margin), np.bool_, order="F")
        padded[tuple(slice(low, low + n) for low, n in zip(margin, to.shape, strict=True))] = to
        strides = np.array([1, padded.shape[0], padded.shape[0] * padded.shape[1]])
        jumps, whole = steps[:count] @ strides, count < len(steps)
        return cls(flat(padded), to.shape, int(margin @ strides), strides, jumps, apart_mm[:count], whole)

    def nearest_mm(self, numbers: Numbers, allowed: float) -> tuple[Distances, Numbers]:
        """Distances, infinite where none was found; and of which that may be for not looking far enough."""
        here = _places(numbers, self.shape) @ self.strides + self.first
        found = np.full(len(numbers), math.inf)
        left = np.arange(len(numbers))
        for low, high in itertools.pairwise((0, *(min(looks, len(self.jumps)) for looks in LOOKS))):
            allowed -= len(left) * (high - low)
            if allowed < 0:
                return found, left
            if not left.size or low == high:
                break
            hits = self.voxels[here[left, None] + self.jumps[low:high]]
            first = hits.argmax(axis=1)
            hit = hits[np.arange(len(left)), first]
            found[left[hit]] = self.apart_mm[low + first[hit]]
            left = left[~hit]
        return found, left[:0] if self.whole else left


@functools.lru_cache(maxsize=8)
def _steps(spacing_mm: Spacing) -> tuple[Places, Distances]:
    """Steps to the voxels around one, nearest first, and how far they are."""
    radius_mm = 2 * (3 * LOOKS[-1] * math.prod(spacing_mm) / (4 * math.pi)) ** (1 / 3)
    # A thick voxel's neighbours may all be beyond a ball of so many voxels: at least one step each way.
    reach = [max(1, int(radius_mm / mm)) for mm in spacing_mm]
    steps = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), -1).reshape(-1, 3)
    apart_mm = _length_mm(steps, spacing_mm)
    order = np.argsort(apart_mm, kind="stable")[1 : LOOKS[-1] + 1]
    return steps[order], apart_mm[order]


def _far(numbers: Numbers, to: Mask, spacing_mm: Spacing) -> Distances:
    count = int(np.count_nonzero(to))
    if len(numbers) * count > PAIRS:
        from liverseg_core.evaluation.transform import nearest_mm

        return nearest_mm(numbers, to, spacing_mm)
    places, others = (_places(some, to.shape) for some in (numbers, np.flatnonzero(flat(to))))
    at_once = max(1, (1 << 20) // count)
    parts = (places[start : start + at_once, None] - others for start in range(0, len(places), at_once))
    return np.concatenate([_length_mm(part, spacing_mm).min(axis=1) for part in parts])


def _places(numbers: Numbers, shape: tuple[int, ...]) -> Places:
    return np.stack(np.unravel_index(numbers, shape, order="F"), axis=1)


def _length_mm(steps: Int64[np.ndarray, "*n 3"], spacing_mm: Spacing) -> Float64[np.ndarray, "*n"]:
    x, y, z = ((steps[..., axis] * mm) ** 2 for axis, mm in enumerate(spacing_mm))
    return np.sqrt(x + y + z)
