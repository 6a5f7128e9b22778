"""Separable resampling, one z plane at a time.

Planes go in and come out in order, and only two are alive at once, so a volume can stream through. Planes are
indexed (y, x), contiguous along x.
"""

import itertools
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

N_CLASSES = 3
ONE = np.float32(1)  # numba's tuples want one type: a bare 1 would make float64 of a float32 weight


def resample_image(planes: Iterable[Plane], source: Grid, target: Grid) -> Iterator[ImagePlane]:
    """Linear interpolation of HU planes, rounded to int16.

    Args:
        planes: The source's planes in z order, any real dtype.
        source: Canonical grid of the planes.
        target: Axis-parallel grid to fill.
    """
    for plane in _linear_planes(planes, axis_maps(source, target)):
        yield _round_to_int16(plane)


def resample_label(
    planes: Iterable[LabelPlane], source: Grid, target: Grid, method: str
) -> Iterator[LabelPlane]:
    """Resample labels by vote (the class with the largest linear weight) or by nearest voxel.

    Label values are never interpolated. Equal votes go to the higher class, which keeps thin tumours.
    """
    along_x, along_y, along_z = axis_maps(source, target)
    if method == "nearest":
        along_x, along_y, along_z = _nearest(along_x), _nearest(along_y), _nearest(along_z)
    for lower, upper, weight in _pairs(planes, along_z):
        yield _vote(lower, upper, weight, (along_x.lower, along_x.weight), (along_y.lower, along_y.weight))


def label_on_grid(probabilities: Probabilities, source: Grid, target: Grid) -> Label:
    """Carry class probabilities to another grid, linearly, and take the most probable class there."""
    maps = axis_maps(source, target)
    label = np.empty(target.shape, np.uint8, order="F")
    # (c, x, y, z) → per class an iterator over (y, x) planes; no class volume at target size exists
    classes = [_linear_planes(_planes(volume), maps) for volume in probabilities]
    for z, planes in enumerate(zip(*classes, strict=True)):
        label[:, :, z] = np.argmax(np.stack(planes), axis=0).T
    return label


def _planes(volume: Float32[np.ndarray, "x y z"]) -> Iterator[FloatPlane]:
    return (np.ascontiguousarray(volume[:, :, z].T) for z in range(volume.shape[2]))


def _linear_planes(planes: Iterable[Plane], maps: tuple[AxisMap, AxisMap, AxisMap]) -> Iterator[FloatPlane]:
    along_x, along_y, along_z = maps
    in_plane = (_linear_2d(p, along_x.lower, along_x.weight, along_y.lower, along_y.weight) for p in planes)
    for lower, upper, weight in _pairs(in_plane, along_z):
        yield lower if weight == 0 else _blend(lower, upper, weight)


def _pairs(planes: Iterable[Plane], along_z: AxisMap) -> Iterator[tuple[Plane, Plane, np.float32]]:
    """For each output plane the two input planes around it; consumes `planes` to its end."""
    source = iter(planes)
    lower = next(source)
    upper = next(source, lower)
    at = 0
    for index, weight in zip(along_z.lower, along_z.weight, strict=True):
        for _ in range(index - at):
            lower, upper = upper, next(source, upper)
        at = int(index)
        yield lower, upper, weight
    for _ in itertools.islice(source, None):  # a reader behind the iterator checks its end
        pass


def _nearest(axis: AxisMap) -> AxisMap:
    return AxisMap(axis.lower, np.floor(axis.weight + np.float32(0.5)).astype(np.float32))


@numba.njit(cache=True, nogil=True)
def _linear_2d(plane, x_lower, x_weight, y_lower, y_weight):  # type: ignore[no-untyped-def]  # numba infers
    width, height = x_lower.size, y_lower.size
    columns, rows = plane.shape[1], plane.shape[0]
    out = np.empty((height, width), np.float32)
    row = np.empty(columns, np.float32)
    for j in range(height):
        y0, wy = y_lower[j], y_weight[j]
        y1 = min(y0 + 1, rows - 1)
        for i in range(columns):
            a = np.float32(plane[y0, i])
            row[i] = a + wy * (np.float32(plane[y1, i]) - a)
        for i in range(width):
            x0 = x_lower[i]
            a = row[x0]
            out[j, i] = a + x_weight[i] * (row[min(x0 + 1, columns - 1)] - a)
    return out


@numba.njit(cache=True, nogil=True)
def _blend(lower, upper, weight):  # type: ignore[no-untyped-def]
    out = np.empty_like(lower)
    for j in range(lower.shape[0]):
        for i in range(lower.shape[1]):
            out[j, i] = lower[j, i] + weight * (upper[j, i] - lower[j, i])
    return out


@numba.njit(cache=True, nogil=True)
def _round_to_int16(plane):  # type: ignore[no-untyped-def]
    out = np.empty(plane.shape, np.int16)
    for j in range(plane.shape[0]):
        for i in range(plane.shape[1]):
            out[j, i] = np.int16(np.floor(plane[j, i] + np.float32(0.5)))
    return out


@numba.njit(cache=True, nogil=True)
def _vote(lower, upper, wz, along_x, along_y):  # type: ignore[no-untyped-def]
    x_lower, x_weight = along_x
    y_lower, y_weight = along_y
    rows, columns = lower.shape
    out = np.empty((y_lower.size, x_lower.size), np.uint8)
    votes = np.empty(N_CLASSES, np.float32)
    for j in range(y_lower.size):
        y0 = y_lower[j]
        y1 = np.int32(min(y0 + 1, rows - 1))
        for i in range(x_lower.size):
            x0 = x_lower[i]
            x1 = np.int32(min(x0 + 1, columns - 1))
            first = lower[y0, x0]
            same = first == lower[y0, x1] == lower[y1, x0] == lower[y1, x1]
            if same and first == upper[y0, x0] == upper[y0, x1] == upper[y1, x0] == upper[y1, x1]:
                out[j, i] = first
                continue
            votes[:] = 0
            for y, wy in ((y0, ONE - y_weight[j]), (y1, y_weight[j])):
                for x, wx in ((x0, ONE - x_weight[i]), (x1, x_weight[i])):
                    votes[lower[y, x]] += wx * wy * (ONE - wz)
                    votes[upper[y, x]] += wx * wy * wz
            best = 0
            for c in range(1, N_CLASSES):
                if votes[c] > 0 and votes[c] >= votes[best] - np.float32(1e-6):
                    best = c
            out[j, i] = best
    return out
