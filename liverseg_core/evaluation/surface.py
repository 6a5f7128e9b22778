"""How far two masks' surfaces are apart, in millimetres.

The surface of a mask is what its erosion by the 6-neighbourhood takes away. Beyond the volume nothing is
known: where the scan cuts a liver off, its voxels may or may not be its last ones. So they count as no
surface to measure from (the volume's border erodes nothing, `border_value=1` in scipy's erosion), but as one
to be near to: a mask that ends a slice before the other's cut is one slice away from it, not half a liver.
MONAI and medpy count the cut both ways, CHAOS neither.

Distances run from the middle of each surface voxel to the nearest of the other mask's surface or cut. Those
of the two directions are pooled for the means and for the surface Dice, as MONAI does; HD95 is the larger of
the two directions' percentiles, as MONAI and DeepMind's surface-distance have it (medpy pools them first).
Where either mask is empty, or neither has any surface to measure from, every measure is undefined.

What other programmes publish is measured their way in `official.py`.
"""

import math
from dataclasses import dataclass

import numpy as np

from liverseg_core.arrays import Spacing
from liverseg_core.evaluation.nearest import distances_mm
from liverseg_core.evaluation.overlap import Mask, union_box

WITHIN_MM = 2.0
"""What the surface Dice forgives."""
ROUNDING_MM = 1e-6
"""Multiples of 0.1 mm are no binary fractions: a distance of 2 mm may come out as 2.0000000000000004."""


@dataclass(frozen=True)
class SurfaceDistances:
    """What the surface distances of a pair of masks come to; None where they are undefined.

    They belong to one case: unlike counts, percentiles of parts do not add up to that of the whole.
    """

    assd_mm: float | None = None
    """Average symmetric surface distance."""
    rmsd_mm: float | None = None
    """Root of the mean square symmetric surface distance."""
    hd95_mm: float | None = None
    """Hausdorff distance, 95th percentile."""
    mssd_mm: float | None = None
    """Maximum symmetric surface distance: the Hausdorff distance."""
    surface_dice_2mm: float | None = None
    """Share of both surfaces that lies within 2 mm of the other."""
    assd_lits_mm: float | None = None
    """This and the next as others define them: see `official.py`."""
    nsd: float | None = None


def surface(mask: Mask) -> Mask:
    """The voxels of a mask that have a 6-neighbour in the volume which is not in the mask.

    Example:
        >>> cut_off = np.array([1, 1, 1, 0], bool).reshape(1, 1, 4)
        >>> surface(cut_off).ravel().tolist()
        [False, False, True, False]
    """
    inside = mask.copy(order="K")
    for axis in range(mask.ndim):
        erode(inside, mask, axis)
    outermost: Mask = mask ^ inside
    return outermost


def erode(inside: Mask, mask: Mask, axis: int) -> None:
    """Take the voxels out of `inside` whose neighbours along an axis are in the volume but not in a mask."""
    ahead, behind = (np.s_[(slice(None),) * axis + (part,)] for part in (slice(1, None), slice(None, -1)))
    inside[behind] &= mask[ahead]
    inside[ahead] &= mask[behind]


def with_cut(surface: Mask, mask: Mask) -> Mask:
    """A mask's surface and its voxels at the border of the volume."""
    known: Mask = surface.copy(order="K")
    for axis in range(mask.ndim):
        outermost = np.s_[(slice(None),) * axis + (slice(None, None, max(1, mask.shape[axis] - 1)),)]
        known[outermost] |= mask[outermost]
    return known


def surface_distances(prediction: Mask, reference: Mask, spacing_mm: Spacing) -> SurfaceDistances:
    """Measure how far the surfaces of two masks are apart.

    Args:
        prediction: A mask.
        reference: Another of the same shape.
        spacing_mm: Size of a voxel along each axis.
    """
    box = union_box(prediction, reference)
    masks = [np.asfortranarray(mask[box]) for mask in (prediction, reference)]
    if not all(mask.any() for mask in masks):
        return SurfaceDistances()
    (predicted, to_predicted), (true, to_true) = (
        (found, with_cut(found, mask)) for mask in masks for found in (surface(mask),)
    )
    directed = distances_mm(predicted, to_true, spacing_mm), distances_mm(true, to_predicted, spacing_mm)
    both = np.concatenate(directed)
    if not both.size:
        return SurfaceDistances()
    return SurfaceDistances(
        assd_mm=float(both.mean()),
        rmsd_mm=math.sqrt(float((both**2).mean())),
        hd95_mm=max(float(np.percentile(one, 95)) for one in directed if one.size),
        mssd_mm=float(both.max()),
        surface_dice_2mm=float((both <= WITHIN_MM + ROUNDING_MM).mean()),
    )
