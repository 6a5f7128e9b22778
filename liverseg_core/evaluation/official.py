"""Surface measures exactly as public programmes define them, so that figures stand beside published ones.

Both take what lies beyond the volume for background: a cut by the scan is surface like any other.
"""

import functools
import itertools
import math
from dataclasses import replace

import numpy as np
from jaxtyping import Float64, UInt8

from liverseg_core.arrays import Spacing
from liverseg_core.evaluation.nearest import distances_mm, flat
from liverseg_core.evaluation.overlap import Mask, union_box
from liverseg_core.evaluation.surface import ROUNDING_MM, SurfaceDistances, erode, surface_distances

Codes = UInt8[np.ndarray, "x y z"]
"""For each point between voxels, which of the eight around it are in a mask: bit 4 · x + 2 · y + z."""
CORNERS = tuple(itertools.product((0, 1), repeat=3))
"""Corners of a cube by number; they are voxels, and the cube the room between their middles."""


def all_distances(
    prediction: Mask, reference: Mask, spacing_mm: Spacing, tolerance_mm: float
) -> SurfaceDistances:
    """What `surface_distances` finds, and what others would.

    Args:
        prediction: A mask.
        reference: Another of the same shape.
        spacing_mm: Size of a voxel along each axis.
        tolerance_mm: Of `nsd`.
    """
    return replace(
        surface_distances(prediction, reference, spacing_mm),
        assd_lits_mm=assd_lits_mm(prediction, reference, spacing_mm),
        nsd=nsd(prediction, reference, spacing_mm, tolerance_mm),
    )


def assd_lits_mm(prediction: Mask, reference: Mask, spacing_mm: Spacing) -> float | None:
    """Average symmetric surface distance as the LiTS programme computes it; None where a mask is empty.

    Its surface is what an erosion by the 18-neighbourhood takes away.

    Source: github.com/PatrickChrist/lits-challenge-scoring, `surface.py`.
    """
    box = union_box(prediction, reference)
    masks = [np.asfortranarray(mask[box]) for mask in (prediction, reference)]
    if not all(mask.any() for mask in masks):
        return None
    predicted, true = (_surface_18(mask) for mask in masks)
    there, back = distances_mm(predicted, true, spacing_mm), distances_mm(true, predicted, spacing_mm)
    return float(there.sum() + back.sum()) / (len(there) + len(back))


def _surface_18(mask: Mask) -> Mask:
    """A voxel stays where it has all of the three planes of 3 × 3 voxels around it."""
    lines = [_eroded(mask, axis) for axis in range(3)]
    x, y, z = lines
    inside = _eroded(x, 1)
    inside &= _eroded(y, 2)
    inside &= _eroded(z, 0)
    outermost: Mask = mask ^ inside
    return outermost


def _eroded(mask: Mask, axis: int) -> Mask:
    """By one voxel to either side along an axis; beyond the volume is background."""
    inside: Mask = mask.copy(order="K")
    erode(inside, mask, axis)
    for end in (0, -1):
        inside[(slice(None),) * axis + (end,)] = False
    return inside


def nsd(prediction: Mask, reference: Mask, spacing_mm: Spacing, tolerance_mm: float) -> float | None:
    """Normalised surface distance: the share of both surfaces' area within a tolerance of the other.

    A surface is of the marching-cubes patches between eight voxels each; a patch lies at the middle of its
    eight, and counts by its area. 0 where one mask is empty, None where both are.

    Source: Nikolov et al., arXiv 1809.04430; the Decathlon's programme, and MONAI's `use_subvoxels`.
    """
    box = union_box(prediction, reference)
    masks = [np.asfortranarray(mask[box]) for mask in (prediction, reference)]
    if not all(mask.any() for mask in masks):
        return 0.0 if any(mask.any() for mask in masks) else None
    areas = surfel_areas_mm2(spacing_mm)
    codes = [_codes(mask) for mask in masks]
    edges = [(code != 0) & (code != 255) for code in codes]
    reach_mm = tolerance_mm + ROUNDING_MM
    near = whole = 0.0
    for code, edge, other in zip(codes, edges, reversed(edges), strict=True):
        weights = areas[flat(code)[flat(edge)]]
        within = distances_mm(edge, other, spacing_mm, reach_mm) <= reach_mm
        near, whole = near + float(weights[within].sum()), whole + float(weights.sum())
    return near / whole


def _codes(mask: Mask) -> Codes:
    codes: Codes = mask.view(np.uint8)
    for axis, bit in enumerate((4, 2, 1)):
        behind, ahead = (np.s_[(slice(None),) * axis + (part,)] for part in (slice(1, None), slice(None, -1)))
        wider = np.zeros(np.add(codes.shape, np.arange(3) == axis), np.uint8, order="F")
        wider[behind] = codes
        wider[ahead] |= codes << np.uint8(bit)
        codes = wider
    return codes


def surfel_areas_mm2(spacing_mm: Spacing) -> Float64[np.ndarray, "256"]:
    """Area of the surface between eight voxels, by which of them are in the mask.

    Example:
        >>> corner, plane = surfel_areas_mm2((1.0, 1.0, 1.0))[[0b1, 0b1111]]
        >>> round(float(corner), 4), round(float(plane), 4)
        (0.2165, 1.0)
    """
    x, y, z = spacing_mm
    areas: Float64[np.ndarray, "256"] = np.sqrt(((_normals() * (y * z, x * z, x * y)) ** 2).sum(-1)).sum(-1)
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


Vector = tuple[float, float, float]
Fan = list[Vector]


def _polygons(code: int) -> list[list[Vector]]:
    """What separates the corners in the mask from the others: through the middles of the edges between them.

    Round each face of the cube, seen from outside, the outline enters the mask and leaves it. Where it does so
    twice, the fewer corners, of the whole cube, are kept apart from one another.
    """
    inside = [bool(code >> number & 1) for number in range(8)]
    if sum(inside) > 4:
        inside = [not one for one in inside]
    follows: dict[frozenset[int], frozenset[int]] = {}
    for ring in _faces():
        crossings = [
            (a, b) for a, b in zip(ring, ring[1:] + ring[:1], strict=True) if inside[a] != inside[b]
        ]
        for at, (a, b) in enumerate(crossings):
            if inside[b]:
                follows[frozenset((a, b))] = frozenset(crossings[(at + 1) % len(crossings)])
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
