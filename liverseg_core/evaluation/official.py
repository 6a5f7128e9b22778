"""Surface measures exactly as public programmes define them, so that figures stand beside published ones.

Both take what lies beyond the volume for background: a cut by the scan is surface like any other.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import UInt8

from liverseg_core.arrays import Spacing
from liverseg_core.evaluation.nearest import distances_mm, flat
from liverseg_core.evaluation.overlap import Mask, union_box
from liverseg_core.evaluation.surface import ROUNDING_MM, SurfaceDistances, erode, surface_distances
from liverseg_core.evaluation.surfels import areas_mm2

Codes = UInt8[np.ndarray, "x y z"]
"""For each point between voxels, which of the eight around it are in a mask: bit 4 · x + 2 · y + z."""


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
    areas = areas_mm2(spacing_mm)
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
