"""The flags of a scan that is held whole, with a label that somebody drew: as of a prediction, for tests."""

import numpy as np

from liverseg_core.arrays import Image, Label
from liverseg_core.cases.data_report import flags_of
from liverseg_core.cases.scan_facts import anatomy_of, scan_facts
from liverseg_core.cases.target import Target
from liverseg_core.classes import N_CLASSES
from liverseg_core.volumes.nifti_header import NiftiHeader


def scan_flags(header: NiftiHeader, target: Target, image: Image, label: Label | None = None) -> list[str]:
    """What is odd about a scan; how tumours lie to the liver, and the liver to its edge, is not looked at."""
    facts = scan_facts(header, target, image)
    if label is None:
        return [*flags_of({**facts, "anatomy": anatomy_of(target, image)})]
    voxels = [int(np.count_nonzero(label == c)) for c in range(N_CLASSES)]
    described = {
        "flags": facts["flags"] + (["no-liver"] if voxels[1] == 0 else []),
        "native_label": {"voxels": voxels, "tumours_outside_liver": 0},
        "anatomy": anatomy_of(target, image, label),
    }
    return [*flags_of({**facts, **described})]
