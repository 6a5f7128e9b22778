"""Separable resampling, one z plane at a time.

Planes go in and come out in order, and only two (cubic: four) are alive at once, so a volume can stream
through. Planes are indexed (y, x), contiguous along x. They may be stored against the canonical axes
(`flips`): the in-plane axes are turned on the way, and planes that come from the top leave from the top. A
flip changes no bit of them.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeVar

import numba
import numpy as np
from jaxtyping import Float32, Int16, Shaped, UInt8

from liverseg_core.volumes.geometry import Grid
from liverseg_core.volumes.taps import UPWARD, Flips, Taps, all_taps, cubic, linear, nearest

ImagePlane = Int16[np.ndarray, "y x"]
LabelPlane = UInt8[np.ndarray, "y x"]
FloatPlane = Float32[np.ndarray, "y x"]
Plane = Shaped[np.ndarray, "y x"]
ProbabilityPlane = Float32[np.ndarray, "c y x"]
"""One z plane of class probabilities."""
AnyPlane = TypeVar("AnyPlane", Plane, ProbabilityPlane)

N_CLASSES = 3
MIXED = 255
ZERO, ONE = (
    np.float32(0),
    np.float32(1),
)  # numba's tuples want one type: a bare 1 would make float64 of a float32 weight
EQUAL = np.float32(1e-6)
"""Votes that differ by less are the same: weights are rounded."""


def resample_image(
    planes: Iterable[Plane],
    source: Grid,
    target: Grid,
    flips: Flips = UPWARD,
    method: Literal["linear", "cubic"] = "linear",
) -> Iterator[ImagePlane]:
    """Interpolate HU planes and round to int16.

    Both go through the voxels and keep ramps; cubic is sharper, and overshoots at hard borders.

    Args:
        planes: The source's planes, any real dtype.
        source: Canonical grid of the planes.
        target: Axis-parallel grid to fill.
        flips: Which canonical axes run against the stored ones.
        method: Of interpolation.
    """
    if method == "cubic":
        x, y, z = all_taps(source, target, flips, cubic)
        in_plane = functools.partial(_cubic_2d, along_x=x.arrays, along_y=y.arrays)
        for k, window in _windows(planes, z, flips[2], in_plane):
            yield _mix_to_int16(window, z.weight[:, k])
        return
    x, y, z = all_taps(source, target, flips)
    in_plane = functools.partial(_linear_2d, along_x=x.arrays, along_y=y.arrays)
    for k, (lower, upper) in _windows(planes, z, flips[2], in_plane):
        yield _blend_to_int16(lower, upper, z.weight[k])


def resample_label(
    planes: Iterable[LabelPlane], source: Grid, target: Grid, method: str, flips: Flips = UPWARD
) -> Iterator[LabelPlane]:
    """Resample labels by vote (the class with the largest linear weight) or by nearest voxel.

    Label values are never interpolated. Equal votes go to the higher class, which keeps thin tumours.
    """
    x, y, z = all_taps(source, target, flips, nearest if method == "nearest" else linear)
    along_x, along_y = x.arrays, y.arrays
    for k, (lower, upper) in _windows(planes, z, flips[2]):
        yield _vote(lower, upper, z.weight[k], along_x, along_y)


def resample_probabilities(
    planes: Iterable[ProbabilityPlane], source: Grid, target: Grid
) -> Iterator[ProbabilityPlane]:
    """Carry planes of class probabilities, upwards, linearly to another grid's planes.

    No more than two of the source's planes are held, so the whole never exists.
    """
    x, y, z = all_taps(source, target, UPWARD)

    def in_plane(classes: ProbabilityPlane) -> ProbabilityPlane:
        return np.stack([_linear_2d(np.ascontiguousarray(one), x.arrays, y.arrays) for one in classes])

    for k, (lower, upper) in _windows(planes, z, False, in_plane):
        count, rows, columns = lower.shape
        pair = (plane.reshape(count * rows, columns) for plane in (lower, upper))
        yield _blend(*pair, z.weight[k]).reshape(count, rows, columns)


def _windows(
    planes: Iterable[AnyPlane],
    taps: Taps,
    falling: bool,
    prepare: Callable[[AnyPlane], AnyPlane] = lambda plane: plane,
) -> Iterator[tuple[int, tuple[AnyPlane, ...]]]:
    """For each output plane its z and the input planes it is made of; consumes `planes` to its end.

    Planes between those that an output plane needs are neither prepared nor held.
    """
    source = enumerate(planes)
    held: dict[int, AnyPlane] = {}
    count = taps.index.shape[1]
    for k in reversed(range(count)) if falling else range(count):
        needed = taps.index[:, k].tolist()
        while max(needed) not in held:
            at, plane = next(source)
            if at >= min(needed):
                held[at] = prepare(plane)
        held = {at: plane for at, plane in held.items() if at >= min(needed)}
        yield k, tuple(held[at] for at in needed)
    for _ in source:  # a reader behind the iterator checks its end
        pass


@numba.njit(cache=True, nogil=True)
def _linear_2d(plane, along_x, along_y):  # type: ignore[no-untyped-def]  # numba infers
    x, x_weight = along_x
    y, y_weight = along_y
    x_lower, x_upper, y_lower, y_upper = x[0], x[1], y[0], y[1]
    out = np.empty((y_lower.size, x_lower.size), np.float32)
    pair = np.empty((plane.shape[1], 2), np.float32)  # two rows share what is looked up along x
    for j in range(0, y_lower.size, 2):
        k = min(j + 1, y_lower.size - 1)
        j_lower, j_upper, j_weight = plane[y_lower[j]], plane[y_upper[j]], y_weight[j]
        k_lower, k_upper, k_weight = plane[y_lower[k]], plane[y_upper[k]], y_weight[k]
        for i in range(plane.shape[1]):
            a, b = np.float32(j_lower[i]), np.float32(k_lower[i])
            pair[i, 0] = a + j_weight * (np.float32(j_upper[i]) - a)
            pair[i, 1] = b + k_weight * (np.float32(k_upper[i]) - b)
        for i in range(x_lower.size):
            lower, upper, weight = pair[x_lower[i]], pair[x_upper[i]], x_weight[i]
            out[j, i] = lower[0] + weight * (upper[0] - lower[0])
            out[k, i] = lower[1] + weight * (upper[1] - lower[1])
    return out


@numba.njit(cache=True, nogil=True)
def _cubic_2d(plane, along_x, along_y):  # type: ignore[no-untyped-def]
    x, wx = along_x
    y, wy = along_y
    out = np.empty((y.shape[1], x.shape[1]), np.float32)
    row = np.empty(plane.shape[1], np.float32)
    for j in range(y.shape[1]):
        a, b, c, d = plane[y[0, j]], plane[y[1, j]], plane[y[2, j]], plane[y[3, j]]
        wa, wb, wc, wd = wy[0, j], wy[1, j], wy[2, j], wy[3, j]
        for i in range(row.size):
            middle = wb * np.float32(b[i]) + wc * np.float32(c[i])
            row[i] = middle + (wa * np.float32(a[i]) + wd * np.float32(d[i]))
        for i in range(x.shape[1]):
            middle = wx[1, i] * row[x[1, i]] + wx[2, i] * row[x[2, i]]
            out[j, i] = middle + (wx[0, i] * row[x[0, i]] + wx[3, i] * row[x[3, i]])
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
def _mix_to_int16(window, weights):  # type: ignore[no-untyped-def]
    a, b, c, d = window
    out = np.empty(a.shape, np.int16)
    for j in range(a.shape[0]):
        for i in range(a.shape[1]):
            middle = weights[1] * b[j, i] + weights[2] * c[j, i]
            value = middle + (weights[0] * a[j, i] + weights[3] * d[j, i])
            value = np.floor(value + np.float32(0.5))
            out[j, i] = np.int16(min(max(value, np.float32(-32768)), np.float32(32767)))
    return out


@numba.njit(cache=True, nogil=True)
def _vote(lower, upper, wz, along_x, along_y):  # type: ignore[no-untyped-def]
    x, x_weight = along_x
    y, y_weight = along_y
    x_lower, x_upper, y_lower, y_upper = x[0], x[1], y[0], y[1]
    columns = lower.shape[1]
    out = np.zeros((y_lower.size, x_lower.size), np.uint8)
    column = np.empty(columns, np.uint8)  # the class that all four voxels of a column share, or MIXED
    for j in range(y_lower.size):
        wy = y_weight[j]
        a, b, c, d = lower[y_lower[j]], lower[y_upper[j]], upper[y_lower[j]], upper[y_upper[j]]
        seen = np.uint8(0)
        for i in range(columns):
            seen |= a[i] | b[i] | c[i] | d[i]
        if seen == 0:
            continue
        for i in range(columns):
            column[i] = a[i] if (a[i] == b[i]) & (a[i] == c[i]) & (a[i] == d[i]) else np.uint8(MIXED)
        for i in range(x_lower.size):
            x0, x1 = x_lower[i], x_upper[i]
            if column[x0] == column[x1] and column[x0] != MIXED:
                out[j, i] = column[x0]
                continue
            none = liver = tumour = ZERO  # unlike an array of votes, these stay in registers
            for u, wx in ((x0, ONE - x_weight[i]), (x1, x_weight[i])):
                front, back = wx * (ONE - wy), wx * wy
                below, above = ONE - wz, wz
                for voxel, weight in (
                    (a[u], front * below),
                    (b[u], back * below),
                    (c[u], front * above),
                    (d[u], back * above),
                ):
                    none += weight if voxel == 0 else ZERO
                    liver += weight if voxel == 1 else ZERO
                    tumour += weight if voxel == 2 else ZERO
            if tumour > 0 and tumour >= max(none, liver) - EQUAL:
                out[j, i] = 2
            elif liver > 0 and liver >= none - EQUAL:
                out[j, i] = 1
    return out
