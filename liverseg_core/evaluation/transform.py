"""Exact distances by a Euclidean distance transform: linear in the volume, however many voxels are how far.

Along x two scans find each row's nearest voxel, along y the lower envelope of the parabolas over a plane's
rows the nearest of its plane (Felzenszwalb and Huttenlocher, Distance Transforms of Sampled Functions, 2012);
along z only the voxels asked for are looked from, up and down, until a plane is too far. Held is which voxel
is the nearest, not how far it is: four bytes a voxel, and distances as exact as if computed from it alone.
"""

import numba
import numpy as np
from jaxtyping import Float64, Int64

from liverseg_core.arrays import Spacing
from liverseg_core.evaluation.overlap import Mask

NOTHING = -1


def nearest_mm(numbers: Int64[np.ndarray, " n"], to: Mask, spacing_mm: Spacing) -> Float64[np.ndarray, " n"]:
    """From each of some voxels to the nearest of a mask.

    Args:
        numbers: Voxels, counted with x fastest.
        to: A mask, not empty.
        spacing_mm: Size of a voxel along each axis.
    """
    planes = np.ascontiguousarray(to.T)
    spacing = tuple(float(mm) for mm in spacing_mm)
    nearest = np.empty(planes.shape, np.int32)
    for plane, found in zip(planes, nearest, strict=True):
        _nearest_in_plane(plane, found, spacing[0], spacing[1])
    distances: Float64[np.ndarray, " n"] = _along_z(numbers, nearest, spacing)
    return distances


@numba.njit(cache=True, nogil=True)
def _nearest_in_plane(plane, found, x_mm, y_mm):  # type: ignore[no-untyped-def]  # numba infers
    """The number of the nearest voxel of a plane, or NOTHING, for each voxel."""
    height, width = plane.shape
    for y in range(height):
        _nearest_in_row(plane[y], found[y])
    rows = np.empty(height, np.int64)  # whose parabolas are lowest somewhere
    begins = np.empty(height, np.float64)  # from where on, in mm
    lowest = np.empty(height, np.int32)
    for x in range(width):
        count = 0
        for y in range(height):
            if found[y, x] == NOTHING:
                continue
            own = ((found[y, x] - x) * x_mm) ** 2 + (y * y_mm) ** 2
            begin = -np.inf
            while count:
                other = rows[count - 1]
                theirs = ((found[other, x] - x) * x_mm) ** 2 + (other * y_mm) ** 2
                begin = (own - theirs) / (2 * y_mm * (y - other))
                if begin > begins[count - 1]:
                    break
                count -= 1
                begin = -np.inf
            rows[count], begins[count] = y, begin
            count += 1
        at = 0
        for y in range(height):
            while at + 1 < count and begins[at + 1] < y * y_mm:
                at += 1
            lowest[y] = rows[at] * width + found[rows[at], x] if count else NOTHING
        found[:, x] = lowest


@numba.njit(cache=True, nogil=True)
def _nearest_in_row(row, found):  # type: ignore[no-untyped-def]
    last = NOTHING
    for x in range(row.size):
        if row[x]:
            last = x
        found[x] = last
    last = NOTHING
    for x in range(row.size - 1, -1, -1):
        if row[x]:
            last = x
        if last != NOTHING and (found[x] == NOTHING or last - x < x - found[x]):
            found[x] = last


@numba.njit(cache=True, nogil=True)
def _along_z(numbers, nearest, spacing):  # type: ignore[no-untyped-def]
    depth, height, width = nearest.shape
    x_mm, y_mm, z_mm = spacing
    distances = np.empty(len(numbers))
    for n in range(len(numbers)):
        row, x = divmod(numbers[n], width)
        z, y = divmod(row, height)
        best = np.inf
        step = 0
        while step < depth and (step * z_mm) ** 2 < best:
            for other in (z - step, z + step):
                if 0 <= other < depth and nearest[other, y, x] != NOTHING:
                    there_y, there_x = divmod(nearest[other, y, x], width)
                    apart = ((there_x - x) * x_mm) ** 2 + ((there_y - y) * y_mm) ** 2 + (step * z_mm) ** 2
                    best = min(best, apart)
            step += 1
        distances[n] = np.sqrt(best)
    return distances
