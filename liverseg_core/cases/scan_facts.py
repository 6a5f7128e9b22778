"""The facts of a scan that is held whole: what `verify` and `ingest` gather of it, by the same measures.

Where a scan streams past, as in ingest, its facts are gathered on the way; here they come from the volume
that a prediction is made of. Nothing of numba is imported: a small scan is predicted without it.
"""

import numpy as np

from liverseg_core.arrays import Image, Label
from liverseg_core.artifacts.artifact import Facts
from liverseg_core.cases.anatomy import CoarseScan
from liverseg_core.cases.intensity import LOWEST, Histogram, body_facts
from liverseg_core.cases.target import Target
from liverseg_core.volumes.nifti_header import NiftiHeader

PIECE = 1 << 22
"""Voxels counted at a time: bincount widens to 64 bits."""


def scan_facts(header: NiftiHeader, target: Target, image: Image) -> Facts:
    """What `flags_of` needs of a scan, but for its anatomy.

    Args:
        header: Of the scan, corrected where somebody knows better.
        target: Where its voxels went.
        image: HU on the case's grid, canonical (`target.grid`).
    """
    return {
        "flags": [*header.flags],
        "shape": list(target.grid.shape),
        "spacing_mm": list(target.grid.spacing_mm),
        "native_spacing_mm": list(target.source.spacing_mm),
        "native_label": None,
        "fingerprint": body_facts(histogram_of(image)),
    }


def anatomy_of(target: Target, image: Image, label: Label | None = None) -> Facts | None:
    """How the body lies in a scan, and in it the liver of its label, if there is one.

    Args:
        target: As of `scan_facts`; so is the next.
        image: Of the scan.
        label: Canonical, at the scan's own spacing (`target.source`).
    """
    coarse = CoarseScan(target.grid.shape, target.grid.spacing_mm)
    coarse.add(0, image.T, None)
    if label is not None:
        coarse.label[:] = _looked_up(label, target, coarse)
    return coarse.anatomy()


def histogram_of(image: Image) -> Histogram:
    """How many voxels have each HU."""
    flat = image.reshape(-1, order="A")
    found = np.zeros(65536, np.int64)
    for start in range(0, flat.size, PIECE):
        found += np.bincount(flat[start : start + PIECE].view(np.uint16), minlength=65536)
    return np.roll(found, -LOWEST)


def _looked_up(label: Label, target: Target, coarse: CoarseScan) -> Label:
    """A label's class where the coarse scan has its voxels: both grids have one middle."""
    at = []
    for size, mm, step, n, own_mm in zip(
        target.grid.shape,
        target.grid.spacing_mm,
        coarse.steps,
        label.shape,
        target.source.spacing_mm,
        strict=True,
    ):
        from_middle = (np.arange(step // 2, size, step) - (size - 1) / 2) * mm
        at.append(np.clip(np.rint(from_middle / own_mm + (n - 1) / 2), 0, n - 1).astype(np.intp))
    return label[np.ix_(*at)]
