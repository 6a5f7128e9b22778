"""The affine of a patch, gathered straight out of the box that was read for it.

A patch voxel p takes its value from the box at q = c_box + M (p − c_patch): M is a 3 × 3 matrix in voxels,
c are centres. Between voxels the image is trilinear; a label is that of the nearest voxel, or of the class
with the largest trilinear weight. Nothing is computed that does not end in the patch, and the box reaches
one voxel beyond all that a patch can ask for, so the loops need no test for its edge.

Boxes and patches are indexed (z, y, x), as stored: rows of a patch then run nearly along rows of its box.
"""

import math
from dataclasses import dataclass

import numba
import numpy as np
from jaxtyping import Float64, Shaped

from liverseg_core.arrays import Shape
from liverseg_core.classes import N_CLASSES

Matrix = Float64[np.ndarray, "3 3"]
"""Voxel offsets from a patch's centre → voxel offsets from its box's centre."""
Volume = Shaped[np.ndarray, "z y x"]

ZERO, ONE = np.uint64(0), np.uint64(1)
HALF = np.float32(0.5)
MAX = np.iinfo(np.int16).max


@dataclass(frozen=True)
class Plan:
    """What is the same for all patches.

    Args:
        window_hu: Brought to (−1, 1) before anything is interpolated, clipped outside.
        vote: Labels by a linear vote of classes, ties to the higher, instead of the nearest voxel.
    """

    window_hu: tuple[float, float]
    vote: bool


def is_flip(matrix: Matrix) -> bool:
    """Whether the matrix only mirrors axes, so that every voxel falls on a voxel."""
    return np.array_equal(np.abs(matrix), np.eye(3))


def margin(matrix: Matrix, size: Shape) -> Shape:
    """Voxels beyond each side of a patch that the matrix pulls into it, and one to spare.

    The corner that reaches furthest along an axis takes the sign of each entry, hence the absolute values.
    """
    if is_flip(matrix):
        return 0, 0, 0
    half = (np.array(size) - 1) / 2
    x, y, z = (1 + np.ceil(np.maximum(0, np.abs(matrix) @ half - half - 1e-6))).astype(int).tolist()
    return x, y, z


def warp(boxes: tuple[Volume, Volume], matrix: Matrix, plan: Plan, out: tuple[Volume, Volume]) -> None:
    """Fill a patch from around the centre of its boxes.

    Args:
        boxes: HU, which are clipped to the window, and classes; larger than the patch by its `margin`.
        matrix: Where each voxel of the patch comes from.
        plan: The window and the way of labels.
        out: The patch: intensities in (−1, 1), float32, and classes, uint8.
    """
    low, high = plan.window_hu
    scaling = np.float32(low), np.float32(2 / (high - low))
    if is_flip(matrix):
        _mirror(boxes, np.diag(matrix) < 0, scaling, out)
        return
    image, patch = boxes[0], out[0]
    np.clip(image, max(math.floor(low), -MAX), min(math.ceil(high), MAX), out=image)
    origin = (np.array(image.shape[::-1]) - 1) / 2 - matrix @ ((np.array(patch.shape[::-1]) - 1) / 2)
    pull = np.column_stack([origin, matrix]).astype(np.float32)
    _gather(boxes, pull, scaling, plan.vote, out)


@numba.njit(cache=True, nogil=True)
def _window(value, low, scale):  # type: ignore[no-untyped-def]  # numba infers
    """HU in a window that starts at `low`, brought to (−1, 1) and clipped."""
    return min(max((np.float32(value) - low) * scale - np.float32(1), np.float32(-1)), np.float32(1))


@numba.njit(cache=True, nogil=True)
def _mirror(boxes, flips, scaling, out):  # type: ignore[no-untyped-def]
    """Fill a patch whose voxels are its box's, turned over along some axes."""
    (image, label), (patch, classes), (low, scale) = boxes, out, scaling
    nz, ny, nx = patch.shape
    for k in range(nz):
        for j in range(ny):
            row = nz - 1 - k if flips[2] else k, ny - 1 - j if flips[1] else j
            values, names, to_value, to_name = image[row], label[row], patch[k, j], classes[k, j]
            if flips[0]:
                for i in range(nx):
                    to_value[i] = _window(values[nx - 1 - i], low, scale)
                    to_name[i] = names[nx - 1 - i]
            else:
                for i in range(nx):
                    to_value[i] = _window(values[i], low, scale)
                    to_name[i] = names[i]


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _gather(boxes, pull, scaling, vote, out):  # type: ignore[no-untyped-def]
    """Fill a patch row by row: first where its voxels lie, in one vector loop, then what is there."""
    (image, label), (patch, classes), (low, scale) = boxes, out, scaling
    values, names = image.reshape(-1), label.reshape(-1)
    row, plane = np.uint64(image.shape[2]), np.uint64(image.shape[1] * image.shape[2])
    steps, votes = (ONE, row, plane), np.empty(N_CLASSES, np.float32)
    n = patch.shape[2]
    places = np.empty(n, np.int32)
    fx, fy, fz = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, np.float32)
    for k in range(patch.shape[0]):
        for j in range(patch.shape[1]):
            x0, y0, z0 = _at(pull, 0, j, k), _at(pull, 1, j, k), _at(pull, 2, j, k)
            for i in range(n):
                step = np.float32(np.int32(i))
                x, y, z = x0 + pull[0, 1] * step, y0 + pull[1, 1] * step, z0 + pull[2, 1] * step
                u, v, w = np.int32(x), np.int32(y), np.int32(z)
                places[i] = np.int32(w * np.int32(plane)) + np.int32(v * np.int32(row)) + u
                fx[i], fy[i], fz[i] = x - np.float32(u), y - np.float32(v), z - np.float32(w)
            for i in range(n):
                at = np.uint64(places[i])  # unsigned: a signed index may count from the end
                a = _between(values[at], values[at + ONE], fx[i])
                b = _between(values[at + row], values[at + row + ONE], fx[i])
                at += plane
                c = _between(values[at], values[at + ONE], fx[i])
                d = _between(values[at + row], values[at + row + ONE], fx[i])
                a, c = a + fy[i] * (b - a), c + fy[i] * (d - c)
                patch[k, j, i] = _window(a + fz[i] * (c - a), low, scale)
            for i in range(n):
                at = np.uint64(places[i])
                up = at + plane
                name = names[at]
                if vote:
                    mixed = (names[at + ONE] ^ name) | (names[at + row] ^ name)
                    mixed |= (names[at + row + ONE] ^ name) | (names[up] ^ name) | (names[up + ONE] ^ name)
                    mixed |= (names[up + row] ^ name) | (names[up + row + ONE] ^ name)
                    if mixed:  # a few in a hundred
                        name = _voted(names, at, steps, (fx[i], fy[i], fz[i]), votes)
                else:
                    at = up if fz[i] >= HALF else at
                    at += row if fy[i] >= HALF else ZERO
                    name = names[at + ONE if fx[i] >= HALF else at]
                classes[k, j, i] = name


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _at(pull, axis, j, k):  # type: ignore[no-untyped-def]
    """Where the first voxel of row j of plane k comes from."""
    return pull[axis, 0] + pull[axis, 2] * np.float32(j) + pull[axis, 3] * np.float32(k)


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _between(a, b, share):  # type: ignore[no-untyped-def]
    first = np.float32(a)
    return first + share * (np.float32(b) - first)


@numba.njit(cache=True, nogil=True)
def _voted(names, at, steps, shares, votes):  # type: ignore[no-untyped-def]
    """The class with the largest linear weight among the eight voxels around."""
    votes[:] = 0
    for corner in range(8):
        weight, there = np.float32(1), at
        for axis in range(3):
            if corner >> axis & 1:
                weight, there = weight * shares[axis], there + steps[axis]
            else:
                weight *= np.float32(1) - shares[axis]
        votes[names[there]] += weight
    best = 0
    for c in range(1, N_CLASSES):
        if votes[c] >= votes[best]:
            best = c
    return np.uint8(best)
