"""A scan's planes across z, whichever way its slices are stacked."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Shaped

from liverseg_core.arrays import Shape
from liverseg_core.volumes.nifti import Scan

Plane = Shaped[np.ndarray, "y x"]

WIDE = 4
"""Bytes of a voxel from which on a volume that is held whole is held as what it becomes."""


def stored_planes(
    scan: Scan, axes: tuple[int, int, int], convert: Callable[[Scan, Plane], Plane]
) -> Iterator[Plane]:
    """Planes with the axes canonical but not yet their directions, as they inflate.

    Where the slices are not stacked along z, the volume is held whole, once: as stored, or, if that is wide,
    as HU or classes.

    Args:
        scan: To be read to its end.
        axes: Which stored axis becomes x, y and z.
        convert: Stored values to HU or classes, for some of the scan's voxels.
    """
    wide = scan.header.dtype.itemsize >= WIDE
    planes = (convert(scan, plane) for plane in scan.slices()) if wide or axes[2] == 2 else scan.slices()
    if axes == (0, 1, 2):
        return planes
    if axes == (1, 0, 2):
        return (np.ascontiguousarray(plane.T) for plane in planes)
    volume = _turned(planes, scan.header.shape, axes)
    return iter(volume) if wide else (convert(scan, plane) for plane in volume)


def _turned(planes: Iterator[Plane], shape: Shape, axes: tuple[int, int, int]) -> Shaped[np.ndarray, "z y x"]:
    first = next(planes)
    volume = np.empty([shape[axis] for axis in reversed(axes)], first.dtype)
    stored = volume.transpose([2 - axes.index(axis) for axis in (2, 1, 0)])
    for k, plane in enumerate(itertools.chain([first], planes)):
        stored[k] = plane
    return volume
