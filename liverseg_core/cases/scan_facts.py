"""What `ingest` stores of a scan, of one that is only predicted: the same facts give it the same flags."""

from dataclasses import asdict

from liverseg_core.arrays import Image
from liverseg_core.artifacts.artifact import Facts
from liverseg_core.cases.intensities import body_facts, histogram_of
from liverseg_core.cases.scan_identity import ScanIdentity
from liverseg_core.cases.target import Target
from liverseg_core.volumes.nifti_header import NiftiHeader


def scan_facts(header: NiftiHeader, target: Target, image: Image, identity: ScanIdentity) -> Facts:
    """What `liverseg_core.cases.data_report.flags_of` needs of an unlabelled scan.

    Args:
        header: As stored.
        target: Where its voxels went.
        image: On that grid.
        identity: Which scan it is.
    """
    return {
        "labelled": False,
        "shape": list(target.grid.shape),
        "spacing_mm": list(target.grid.spacing_mm),
        "native_spacing_mm": list(header.grid.spacing_mm),
        "native_label": None,
        "flags": [*header.flags],
        "fingerprint": body_facts(histogram_of(image)),
        "identity": asdict(identity),
    }
