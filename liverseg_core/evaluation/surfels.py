"""How large the patches of surface are that marching cubes puts between eight voxels.

They are worked out from the cube's geometry, for any spacing; those of the tables in use come out.
"""

import functools
import itertools
import math

import numpy as np
from jaxtyping import Float64

from liverseg_core.arrays import Spacing

Areas = Float64[np.ndarray, " codes"]
Vector = tuple[float, float, float]
Fan = list[Vector]
"""A polygon's triangles from one of its corners, as half their cross products."""
CORNERS = tuple(itertools.product((0, 1), repeat=3))
"""Corners of a cube by number; they are voxels, and the cube the room between their middles."""


def areas_mm2(spacing_mm: Spacing) -> Areas:
    """Area of the surface between eight voxels, by which of them are in the mask.

    Example:
        >>> corner, plane = areas_mm2((1.0, 1.0, 1.0))[[0b1, 0b1111]]
        >>> round(float(corner), 4), round(float(plane), 4)
        (0.2165, 1.0)
    """
    x, y, z = spacing_mm
    stretched = _normals() * (y * z, x * z, x * y)
    areas: Areas = np.sqrt((stretched**2).sum(axis=-1)).sum(axis=-1)
    return areas


@functools.cache
def _normals() -> Float64[np.ndarray, "256 n 3"]:
    """Half the cross products of each code's triangles in a cube of unit size; as many rows of 0 as it takes.

    A bent polygon has several triangulations: the programmes' tables have the one with the largest area in
    that cube, whatever the spacing, and it is a fan.
    """
    normals = np.zeros((256, 4, 3))
    for code in range(1, 255):
        found = [max(_fans(polygon), key=_area) for polygon in _polygons(code)]
        triangles = [triangle for fan in found for triangle in fan]
        normals[code, : len(triangles)] = triangles
    return normals


def _polygons(code: int) -> list[list[Vector]]:
    """What separates the corners in the mask from the others: through the middles of the edges between them.

    Round each face of the cube, seen from outside, the outline enters the mask and leaves it. Where it does
    so twice, the fewer corners, of the whole cube, are kept apart from one another.
    """
    inside = [bool(code >> number & 1) for number in range(8)]
    if sum(inside) > 4:
        inside = [not one for one in inside]
    follows: dict[frozenset[int], frozenset[int]] = {}
    for ring in _faces():
        crossings = [(a, b) for a, b in zip(ring, ring[1:] + ring[:1], strict=True) if inside[a] != inside[b]]
        for n, (a, b) in enumerate(crossings):
            if inside[b]:
                follows[frozenset((a, b))] = frozenset(crossings[(n + 1) % len(crossings)])
    polygons = []
    while follows:
        start = at = next(iter(follows))
        polygon = []
        while at in follows:
            polygon.append(_middle(at))
            at = follows.pop(at)
        assert at == start, "every outline closes"
        polygons.append(polygon)
    return polygons


def _faces() -> list[list[int]]:
    """The corners of each face, round it as seen from outside."""
    faces = []
    for axis, side in itertools.product(range(3), (0, 1)):
        turn = ((0, 0), (1, 0), (1, 1), (0, 1))
        ring = []
        for u, v in turn if side else reversed(turn):
            place = {axis: side, (axis + 1) % 3: u, (axis + 2) % 3: v}
            ring.append(4 * place[0] + 2 * place[1] + place[2])
        faces.append(ring)
    return faces


def _middle(edge: frozenset[int]) -> Vector:
    one, other = (CORNERS[number] for number in edge)
    x, y, z = ((a + b) / 2 for a, b in zip(one, other, strict=True))
    return x, y, z


def _fans(polygon: list[Vector]) -> list[Fan]:
    """A polygon's triangles from each of its corners, as half their cross products."""
    turns = (polygon[at:] + polygon[:at] for at in range(len(polygon)))
    return [[_half_cross(first, a, b) for a, b in itertools.pairwise(rest)] for first, *rest in turns]


def _half_cross(origin: Vector, one: Vector, other: Vector) -> Vector:
    ax, ay, az = (a - b for a, b in zip(one, origin, strict=True))
    bx, by, bz = (a - b for a, b in zip(other, origin, strict=True))
    return (ay * bz - az * by) / 2, (az * bx - ax * bz) / 2, (ax * by - ay * bx) / 2


def _area(fan: Fan) -> float:
    return sum(math.hypot(*normal) for normal in fan)
