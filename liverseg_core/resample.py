"""Separable resampling, one z plane at a time.

Planes go in and come out in order, and only two are alive at once, so a volume can stream through. Planes are
indexed (y, x), contiguous along x. They may be stored against the canonical axes (`flips`): the in-plane axes
are turned on the way, and planes that come from the top leave from the top. A flip changes no bit of them.
"""

from collections.abc import Iterable, Iterator

import numba
import numpy as np
from jaxtyping import Float32, Int16, Shaped, UInt8

from liverseg_core.arrays import Label, Probabilities
from liverseg_core.geometry import AxisMap, Grid, axis_maps

ImagePlane = Int16[np.ndarray, "y x"]
LabelPlane = UInt8[np.ndarray, "y x"]
FloatPlane = Float32[np.ndarray, "y x"]
Plane = Shaped[np.ndarray, "y x"]
Flips = tuple[bool, bool, bool]
Taps = tuple[Shaped[np.ndarray, " n"], Shaped[np.ndarray, " n"], Float32[np.ndarray, " n"]]
"""Along one stored axis: the two voxels around each output voxel, and the weight of the second."""

UPWARD = (False, False, False)
N_CLASSES = 3
MIXED = 255
ONE = np.float32(1)  # numba's tuples want one type: a bare 1 would make float64 of a float32 weight


def resample_image(
    planes: Iterable[Plane], source: Grid, target: Grid, flips: Flips = UPWARD
) -> Iterator[ImagePlane]:
    """Linear interpolation of HU planes, rounded to int16.

    Args:
        planes: The source's planes, any real dtype.
        source: Canonical grid of the planes.
        target: Axis-parallel grid to fill.
        flips: Which canonical axes run against the stored ones.
    """
    for lower, upper, weight in _linear_pairs(planes, source, target, flips):
        yield _blend_to_int16(lower, upper, weight)


def resample_label(
    planes: Iterable[LabelPlane], source: Grid, target: Grid, method: str, flips: Flips = UPWARD
) -> Iterator[LabelPlane]:
    """Resample labels by vote (the class with the largest linear weight) or by nearest voxel.

    Label values are never interpolated. Equal votes go to the higher class, which keeps thin tumours.
    """
    maps = axis_maps(source, target)
    along_x, along_y, along_z = (_nearest(axis) for axis in maps) if method == "nearest" else maps
    x, y = _taps(along_x, source.shape[0], flips[0]), _taps(along_y, source.shape[1], flips[1])
    for lower, upper, weight in _pairs(planes, along_z, source.shape[2], flips[2]):
        yield _vote(lower, upper, weight, x, y)


def label_on_grid(probabilities: Probabilities, source: Grid, target: Grid) -> Label:
    """Carry class probabilities to another grid, linearly, and take the most probable class there."""
    label = np.empty(target.shape, np.uint8, order="F")
    # (c, x, y, z) → per class an iterator over (y, x) planes; no class volume at target size exists
    classes = [_linear_pairs(_planes(volume), source, target, UPWARD) for volume in probabilities]
    for z, pairs in enumerate(zip(*classes, strict=True)):
        label[:, :, z] = np.argmax(np.stack([_blend(*pair) for pair in pairs]), axis=0).T
    return label


def _planes(volume: Float32[np.ndarray, "x y z"]) -> Iterator[FloatPlane]:
    return (np.ascontiguousarray(volume[:, :, z].T) for z in range(volume.shape[2]))


def _linear_pairs(
    planes: Iterable[Plane], source: Grid, target: Grid, flips: Flips
) -> Iterator[tuple[FloatPlane, FloatPlane, np.float32]]:
    """For each output plane the two planes around it, on the target's grid already within themselves."""
    along_x, along_y, along_z = axis_maps(source, target)
    x, y = _taps(along_x, source.shape[0], flips[0]), _taps(along_y, source.shape[1], flips[1])
    return _pairs((_linear_2d(plane, x, y) for plane in planes), along_z, source.shape[2], flips[2])


def _pairs(
    planes: Iterable[Plane], along_z: AxisMap, size: int, falling: bool
) -> Iterator[tuple[Plane, Plane, np.float32]]:
    """For each output plane the input planes below and above it; consumes `planes` to its end."""
    source = iter(planes)
    first = next(source)
    second = next(source, first)
    at = 0
    lower, weights = along_z.lower, along_z.weight
    if falling:
        lower, weights = max(size - 2, 0) - lower[::-1], weights[::-1]
    for index, weight in zip(lower.tolist(), weights, strict=True):
        while at < index:
            first, second = second, next(source, second)
            at += 1
        yield (second, first, weight) if falling else (first, second, weight)
    for _ in source:  # a reader behind the iterator checks its end
        pass


def _taps(axis: AxisMap, size: int, flip: bool) -> Taps:
    lower, upper = axis.lower, np.minimum(axis.lower + 1, size - 1).astype(np.int32)
    return (size - 1 - lower, size - 1 - upper, axis.weight) if flip else (lower, upper, axis.weight)


def _nearest(axis: AxisMap) -> AxisMap:
    return AxisMap(axis.lower, np.floor(axis.weight + np.float32(0.5)).astype(np.float32))


@numba.njit(cache=True, nogil=True)
def _linear_2d(plane, along_x, along_y):  # type: ignore[no-untyped-def]  # numba infers
    x_lower, x_upper, x_weight = along_x
    y_lower, y_upper, y_weight = along_y
    out = np.empty((y_lower.size, x_lower.size), np.float32)
    row = np.empty(plane.shape[1], np.float32)
    for j in range(y_lower.size):
        lower, upper, wy = plane[y_lower[j]], plane[y_upper[j]], y_weight[j]
        for i in range(row.size):
            a = np.float32(lower[i])
            row[i] = a + wy * (np.float32(upper[i]) - a)
        for i in range(x_lower.size):
            a = row[x_lower[i]]
            out[j, i] = a + x_weight[i] * (row[x_upper[i]] - a)
    return out


@numba.njit(cache=True, nogil=True)
def _blend(lower, upper, weight):  # type: ignore[no-untyped-def]
    out = np.empty_like(lower)
    for j in range(lower.shape[0]):
        for i in range(lower.shape[1]):
            out[j, i] = lower[j, i] + weight * (upper[j, i] - lower[j, i])
    return out


@numba.njit(cache=True, nogil=True)
def _blend_to_int16(lower, upper, weight):  # type: ignore[no-untyped-def]
    out = np.empty(lower.shape, np.int16)
    for j in range(lower.shape[0]):
        for i in range(lower.shape[1]):
            value = lower[j, i] + weight * (upper[j, i] - lower[j, i])
            out[j, i] = np.int16(np.floor(value + np.float32(0.5)))
    return out


@numba.njit(cache=True, nogil=True)
def _vote(lower, upper, wz, along_x, along_y):  # type: ignore[no-untyped-def]
    x_lower, x_upper, x_weight = along_x
    y_lower, y_upper, y_weight = along_y
    columns = lower.shape[1]
    out = np.zeros((y_lower.size, x_lower.size), np.uint8)
    column = np.empty(columns, np.uint8)  # the class that all four voxels of a column share, or MIXED
    votes = np.empty(N_CLASSES, np.float32)
    for j in range(y_lower.size):
        y0, y1 = y_lower[j], y_upper[j]
        a, b, c, d = lower[y0], lower[y1], upper[y0], upper[y1]
        seen = np.uint8(0)
        for i in range(columns):
            column[i] = a[i] if (a[i] == b[i]) & (a[i] == c[i]) & (a[i] == d[i]) else np.uint8(MIXED)
            seen |= column[i]
        if seen == 0:
            continue
        for i in range(x_lower.size):
            x0, x1 = x_lower[i], x_upper[i]
            if column[x0] == column[x1] and column[x0] != MIXED:
                out[j, i] = column[x0]
                continue
            votes[:] = 0
            for y, wy in ((y0, ONE - y_weight[j]), (y1, y_weight[j])):
                for x, wx in ((x0, ONE - x_weight[i]), (x1, x_weight[i])):
                    votes[lower[y, x]] += wx * wy * (ONE - wz)
                    votes[upper[y, x]] += wx * wy * wz
            best = 0
            for k in range(1, N_CLASSES):
                if votes[k] > 0 and votes[k] >= votes[best] - np.float32(1e-6):
                    best = k
            out[j, i] = best
    return out
