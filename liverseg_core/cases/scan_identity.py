"""Which scan it is, whatever its header says: digests of the voxels as stored, in whole HU.

A scan that comes a second time under another name often comes with another header: mirrored, turned, its
spacing, origin or rescale intercept lost. Its voxels stay, so two digests are taken of them alone:

- `histogram`: how many voxels there are of each HU, of every second one along each axis, counted from both
  ends, and the sizes in ascending order;
- `voxels`: the sums of all voxels, each times a number for its place along each axis, one sum for each way
  to flip and permute the axes. A flip or a permutation of the scan permutes these sums, so their sorted list
  is the scan's whichever way it lies; that another scan has the same is no more likely than 1 in 2⁴⁸.

Being sums, they need one pass over the planes, from either end, and no second copy of a volume.

HU are rounded to the nearest whole one (halves upwards), so that int16, floats and any slope of up to 1 HU
give the same; fractions that a tool left in a scan are lost, as it should be. They count from the lowest of
those in the histogram, since an intercept is a matter of the header, too.
"""

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped, UInt64

Plane = Shaped[np.ndarray, "y x"]

WEIGHT_BITS = 26
PIECE = 1 << (53 - 15 - WEIGHT_BITS)
"""Voxels of a row whose weighted sum, with HU of 16 bits, float64 holds exactly, for BLAS."""


@dataclass(frozen=True)
class ScanIdentity:
    """Equal for two scans of equal voxels, up to flips and permutations of their axes.

    Args:
        histogram: Digest of the HU histogram and the sorted shape: cheap to compare, seldom equal by chance.
        voxels: Digest of every voxel and its place.
    """

    histogram: str
    voxels: str


class ScanIdentifier:
    """Accumulates over the planes of one scan, all of one shape, in ascending or descending order.

    Args:
        depth: How many planes there are.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.seen = 0
        self.counts: Int64[np.ndarray, " 65536"] = np.zeros(65536, np.int64)
        self.axes: tuple[_Axis, ...] = ()
        self.sums: UInt64[np.ndarray, "z y x"] = np.zeros((0, 0, 0), np.uint64)
        self.buffer: Float64[np.ndarray, "y x"] = np.empty((0, 0))

    def add(self, plane: Plane) -> None:
        """Take in the next plane: HU within int16, whole or not."""
        if not self.axes:
            shape = (self.depth, *plane.shape)
            self.axes = tuple(_axis(size, shape) for size in shape)
            self.sums = np.zeros([len(axis.weights) for axis in self.axes], np.uint64)
            self.buffer = np.empty(plane.shape, np.float64)
        z, y, x = self.axes
        whole = _whole(plane)
        if z.counted[self.seen]:
            some = whole[y.counted][:, x.counted]
            np.add.at(self.counts, some.reshape(-1).view(np.uint16), 1)
        self.buffer[:] = whole
        rows = np.zeros((len(whole), len(x.weights)), np.uint64)
        for start in range(0, whole.shape[1], PIECE):
            part = np.s_[start : start + PIECE]
            rows += (self.buffer[:, part] @ x.exact[part]).astype(np.int64).view(np.uint64)
        self.sums += z.weights[:, self.seen, None, None] * (y.weights @ rows)
        self.seen += 1

    def identity(self) -> ScanIdentity:
        """What all planes together are."""
        assert self.seen == self.depth, "a scan is known by all of its planes"
        ordered = np.roll(self.counts, 32768)
        occupied = np.flatnonzero(ordered)
        shape = sorted(axis.weights.shape[1] for axis in self.axes)
        histogram = hashlib.sha256(repr(shape).encode())
        histogram.update(ordered[occupied[0] : occupied[-1] + 1].tobytes())
        level = int(occupied[0]) - 32768
        found = []
        for number, orders in enumerate(itertools.product(*(axis.orders for axis in self.axes))):
            if len({rank for rank, _ in orders}) == 3:
                at = np.unravel_index(number, self.sums.shape)
                ones = [int(axis.weights[k].sum()) for axis, k in zip(self.axes, at, strict=True)]
                found.append((int(self.sums[at]) - level * math.prod(ones)) % 2**64)  # as if from 0 HU
        voxels = hashlib.sha256(repr([shape, sorted(found)]).encode())
        voxels.update(histogram.digest())
        return ScanIdentity(histogram.hexdigest()[:16], voxels.hexdigest()[:32])


def identify(voxels: Shaped[np.ndarray, "_ _ _"]) -> ScanIdentity:
    """The identity of a scan that is held whole.

    Args:
        voxels: HU within int16, whole or not, on any axes; best in an order that memory has.
    """
    by_step = sorted(range(3), key=lambda axis: -abs(voxels.strides[axis]))
    planes = voxels.transpose(by_step)
    identifier = ScanIdentifier(len(planes))
    for plane in planes:
        identifier.add(plane)
    return identifier.identity()


def identifying(planes: Iterable[Plane], identifier: ScanIdentifier) -> Iterator[Plane]:
    """The same planes, seen on their way."""
    for plane in planes:
        identifier.add(plane)
        yield plane


@dataclass(frozen=True)
class _Axis:
    """The weights of an axis of one length, for each way in which it may stand in the sorted shape.

    Args:
        orders: Which place in the sorted shape, and whether backwards.
        weights: For each of them and each index along the axis.
        exact: The same, transposed, for BLAS.
        counted: Whether the histogram has the voxels at an index.
    """

    orders: tuple[tuple[int, bool], ...]
    weights: UInt64[np.ndarray, "order n"]
    exact: Float64[np.ndarray, "n order"]
    counted: Bool[np.ndarray, " n"]


def _axis(size: int, shape: tuple[int, ...]) -> _Axis:
    ranks = [rank for rank, length in enumerate(sorted(shape)) if length == size]
    orders = tuple((rank, backwards) for rank in ranks for backwards in (False, True))
    weights = np.stack([_weights(rank, size)[:: -1 if backwards else 1] for rank, backwards in orders])
    indices = np.arange(size)
    counted = np.minimum(indices, indices[::-1]) % 2 == 0
    return _Axis(orders, weights, np.ascontiguousarray(weights.T.astype(np.float64)), counted)


def _weights(rank: int, size: int) -> UInt64[np.ndarray, " n"]:
    """Odd numbers that look random, the same on every machine.

    Source: splitmix64, Steele et al., Fast splittable pseudorandom number generators (2014).
    """
    mixed = np.arange(1, size + 1, dtype=np.uint64) + np.uint64((rank + 1) << 32)
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    found: UInt64[np.ndarray, " n"] = (mixed >> np.uint64(64 - WEIGHT_BITS)) | np.uint64(1)
    return found


def _whole(plane: Plane) -> Shaped[np.ndarray, "y x"]:
    """HU as contiguous int16 in this machine's byte order."""
    if plane.dtype.kind == "f":
        plane = np.floor(plane + plane.dtype.type(0.5))
    return np.ascontiguousarray(plane, np.int16)
