"""The flags of a scan that is held whole: what `verify` and `ingest` would say of it, by the same measures.

Where a scan streams past, as in ingest, its facts are gathered on the way; here they come from the volume
that a prediction is made of. Nothing of numba is imported: a small scan is predicted without it.
"""

from typing import Any

import numpy as np

from liverseg_core.arrays import Image, Label
from liverseg_core.cases.anatomy import CoarseScan
from liverseg_core.cases.data_report import flags_of
from liverseg_core.cases.intensity import LOWEST, body_facts
from liverseg_core.cases.target import Target
from liverseg_core.classes import N_CLASSES
from liverseg_core.volumes.nifti_header import NiftiHeader


def scan_flags(header: NiftiHeader, target: Target, image: Image, label: Label | None = None) -> list[str]:
    """What is odd about a scan, as names in `liverseg_core.cases.data_report.MEANING`.

    Args:
        header: Of the scan, corrected where somebody knows better.
        target: Where its voxels went.
        image: HU on the case's grid, canonical (`target.grid`).
        label: Its label, or what was predicted of it, canonical at the scan's own spacing (`target.source`).
            How tumours lie to the liver is not looked at.
    """
    histogram = np.zeros(65536, np.int64)
    for plane in image.T:
        np.add.at(histogram, np.ascontiguousarray(plane, np.int16).reshape(-1).view(np.uint16), 1)
    coarse = CoarseScan(target.grid.shape, target.grid.spacing_mm)
    coarse.add(0, image.T, None)
    flags, described = [*header.flags], None
    if label is not None:
        coarse.label[:] = _looked_up(label, target, coarse)
        voxels = [int(np.count_nonzero(label == c)) for c in range(N_CLASSES)]
        described = {"voxels": voxels, "tumours_outside_liver": 0}
        flags += ["no-liver"] if voxels[1] == 0 else []
    facts: dict[str, Any] = {
        "flags": flags,
        "shape": target.grid.shape,
        "spacing_mm": target.grid.spacing_mm,
        "native_spacing_mm": target.source.spacing_mm,
        "native_label": described,
        "fingerprint": body_facts(np.roll(histogram, -LOWEST)),
        "anatomy": coarse.anatomy(),
    }
    return [*flags_of(facts)]


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
