"""A scan by its path, whatever it is: a NIfTI file, or the folder of a DICOM series."""

from pathlib import Path
from typing import TYPE_CHECKING

from liverseg_core.cases.scan_identity import ScanIdentifier, ScanIdentity
from liverseg_core.volumes.nifti import Scan, as_hu, open_nifti

if TYPE_CHECKING:
    from liverseg_core.dicom.series import Series


def open_path(path: Path) -> tuple[Scan, "Series | None"]:
    """Open a scan, to be read once, with its series where it is one.

    Raises:
        LiversegError: LS301 where there is none; LS311 to LS317 for what `open_scan` refuses, LS352 to LS355
            for a series that can't be used.
    """
    if not path.is_dir():
        return open_nifti(path), None
    from liverseg_core.dicom.series import read_series  # half a second to import, for those who have DICOM

    series = read_series(path)
    return series.open(), series


def identify_path(path: Path) -> ScanIdentity:
    """Which scan it is.

    Raises:
        LiversegError: As `open_path`; LS318 for voxel values that can't be HU.
    """
    scan, _ = open_path(path)
    identifier = ScanIdentifier(scan.header.shape[2])
    for plane in scan.slices():
        identifier.add(as_hu(scan, plane))
    return identifier.identity()
