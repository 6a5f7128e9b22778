"""Where a scan's voxels go: onto its case's grid, canonical axes at the case's spacing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Shaped

from liverseg_core.config import IngestConfig
from liverseg_core.volumes.geometry import Grid, Orientation, canonical_orientation, resampled_grid
from liverseg_core.volumes.nifti import Volume, as_classes, as_hu
from liverseg_core.volumes.nifti_header import NiftiHeader
from liverseg_core.volumes.resample import resample_image, resample_label


@dataclass(frozen=True)
class Target:
    """How a scan's stored axes become the axes and grid of its case."""

    orientation: Orientation
    source: Grid
    """Canonical grid at the scan's own spacing."""
    grid: Grid
    """The case's grid."""
    interpolation: Literal["linear", "cubic"]
    """Of the scan; a label's is an argument, since predictions come back by nearest."""


def plan_target(header: NiftiHeader, config: IngestConfig) -> Target:
    """Where a scan with this header ends up under this config."""
    orientation = canonical_orientation(header.affine)
    source = orientation.canonical_grid(header.grid)
    x, y, z = (value * config.shrink for value in source.spacing_mm)
    grid = resampled_grid(source, config.spacing_mm or (x, y, z))
    return Target(orientation, source, grid, config.interpolation)


def image_planes(volume: Volume, target: Target) -> Iterator[Shaped[np.ndarray, "y x"]]:
    """The planes of a scan on its case's grid, int16 HU, upwards."""
    planes = (as_hu(volume, plane) for plane in _canonical_planes(volume, target))
    return resample_image(planes, target.source, target.grid, method=target.interpolation)


def label_planes(volume: Volume, target: Target, method: str) -> Iterator[Shaped[np.ndarray, "y x"]]:
    """The planes of a label on its case's grid, by vote or nearest, upwards."""
    planes = (as_classes(volume, plane) for plane in _canonical_planes(volume, target))
    return resample_label(planes, target.source, target.grid, method)


def _canonical_planes(volume: Volume, target: Target) -> Iterator[Shaped[np.ndarray, "y x"]]:
    canonical = target.orientation.to_canonical(volume.data)
    return (np.ascontiguousarray(canonical[:, :, z].T) for z in range(canonical.shape[2]))
