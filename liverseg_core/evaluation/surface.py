"""How far two masks' surfaces are apart, in millimetres.

The surface of a mask is what its erosion by the 6-neighbourhood takes away. Beyond the volume nothing is
known, so a liver that the scan cuts off has no surface there: the volume's border erodes nothing
(`border_value=1` in scipy's erosion). MONAI and medpy erode there, and so count the cut as surface.

Distances run from the middle of each surface voxel to the nearest surface voxel of the other mask. Those of
the two directions are pooled for the mean and for the surface Dice, as MONAI does; HD95 is the larger of the
two directions' percentiles, as MONAI and DeepMind's surface-distance have it (medpy pools them first). Where
either mask has no surface, every measure is undefined: there is no distance to nothing.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from liverseg_core.arrays import Spacing
from liverseg_core.evaluation.overlap import Mask, union_box

Distances = Float64[np.ndarray, " n"]
TOLERANCE_MM = 2.0
"""What the surface Dice forgives."""
ROUNDING_MM = 1e-6
"""Multiples of 0.1 mm are no binary fractions: a distance of 2 mm may come out as 2.0000000000000004."""


@dataclass(frozen=True)
class SurfaceDistances:
    """What the surface distances of a pair of masks come to; None where a mask has no surface.

    They belong to one case: unlike counts, percentiles of parts do not add up to that of the whole.
    """

    assd_mm: float | None = None
    """Average symmetric surface distance."""
    hd95_mm: float | None = None
    """Hausdorff distance, 95th percentile."""
    mssd_mm: float | None = None
    """Maximum symmetric surface distance: the Hausdorff distance."""
    surface_dice_2mm: float | None = None
    """Share of both surfaces that lies within 2 mm of the other."""


def surface(mask: Mask) -> Mask:
    """The voxels of a mask that have a 6-neighbour in the volume which is not in the mask.

    Example:
        >>> cut_off = np.array([1, 1, 1, 0], bool).reshape(1, 1, 4)
        >>> surface(cut_off).ravel().tolist()
        [False, False, True, False]
    """
    inside = mask.copy(order="K")
    for axis in range(mask.ndim):
        ahead, behind = (np.s_[(slice(None),) * axis + (part,)] for part in (slice(1, None), slice(None, -1)))
        inside[behind] &= mask[ahead]
        inside[ahead] &= mask[behind]
    outermost: Mask = mask ^ inside
    return outermost


def surface_distances(prediction: Mask, reference: Mask, spacing_mm: Spacing) -> SurfaceDistances:
    """Measure how far the surfaces of two masks are apart.

    Args:
        prediction: A mask.
        reference: Another of the same shape.
        spacing_mm: Size of a voxel along each axis.
    """
    box = union_box(prediction, reference)
    predicted, true = (surface(np.asfortranarray(mask[box])) for mask in (prediction, reference))
    if not (predicted.any() and true.any()):
        return SurfaceDistances()
    directed = _distances(predicted, true, spacing_mm), _distances(true, predicted, spacing_mm)
    both = np.concatenate(directed)
    return SurfaceDistances(
        assd_mm=float(both.mean()),
        hd95_mm=max(float(np.percentile(one, 95)) for one in directed),
        mssd_mm=float(both.max()),
        surface_dice_2mm=float((both <= TOLERANCE_MM + ROUNDING_MM).mean()),
    )


def _distances(voxels: Mask, to: Mask, spacing_mm: Spacing) -> Distances:
    """From each voxel to the nearest of the others, in no particular order.

    Surfaces are thin, so a tree of their voxels costs a fraction of a distance transform of the volume.
    """
    from scipy.spatial import cKDTree

    found = np.zeros(np.count_nonzero(voxels))
    apart = _places_mm(voxels & ~to, spacing_mm)  # what they share is 0 mm from itself
    tree = cKDTree(_places_mm(to, spacing_mm), leafsize=32)
    found[: len(apart)] = tree.query(apart)[0]
    return found


def _places_mm(mask: Mask, spacing_mm: Spacing) -> Float64[np.ndarray, "n 3"]:
    """Where a mask's voxels are, from that of index 0; x fastest, as the mask lies in memory."""
    indices = np.unravel_index(np.flatnonzero(mask.ravel(order="F")), mask.shape, order="F")
    places_mm: Float64[np.ndarray, "n 3"] = np.stack(indices, axis=1) * np.asarray(spacing_mm)
    return places_mm
