"""Check a case without storing it: the same gates as ingest, nothing written."""

from typing import Any

import numpy as np

from liverseg_core.errors import ExitCode, LiversegError
from liverseg_core.ingest import read_case
from liverseg_core.nifti import as_hu, as_label
from liverseg_core.source import CaseSource


def verify_case(case: CaseSource) -> dict[str, Any]:
    """Read a case whole and say what is wrong with it.

    Returns:
        `case`, `shape`, `spacing_mm`, `labelled`, `flags`, and `problem`: None, or the error's text.

    Raises:
        LiversegError: When the source's server fails: that says nothing of the case.
    """
    found: dict[str, Any] = {"case": case.case, "labelled": case.label is not None, "problem": None}
    try:
        volume, label = read_case(case)
        found["shape"] = list(volume.header.shape)
        found["spacing_mm"] = [round(value, 4) for value in volume.header.grid.spacing_mm]
        found["flags"] = list(volume.header.flags)
        for z in range(volume.data.shape[2]):
            as_hu(volume, volume.data[:, :, z])
        if label is not None and not np.any(as_label(label)):
            found["flags"].append("no-liver")
    except LiversegError as error:
        if error.exit_code is ExitCode.UNREACHABLE:
            raise
        found["problem"] = str(error)
    return found
