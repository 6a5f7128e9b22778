"""A case's scan and label, opened as streams and checked against each other."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from isal import igzip

from liverseg_core.errors import LiversegError
from liverseg_core.sources.source import CaseSource, Member
from liverseg_core.volumes.geometry import corner_distance_mm
from liverseg_core.volumes.inflate import PIECE, is_gzip, joined
from liverseg_core.volumes.nifti import Scan, open_scan


def open_scans(case: CaseSource, keep: Path | None = None) -> tuple[Scan, Scan | None]:
    """Open a case's scan and label with their headers corrected, checked against each other.

    Args:
        case: What to open.
        keep: Where to write the label's own bytes on their way.

    Raises:
        LiversegError: LS303 and LS311 to LS317; LS321 when the label does not lie on the scan.
    """
    image = _open(case.image)
    label = _open(case.label, keep) if case.label else None
    image = _corrected(image, case)
    label = label and _corrected(label, case)
    _check_match(image, label)
    return image, label


def _corrected(scan: Scan, case: CaseSource) -> Scan:
    return replace(scan, header=scan.header.corrected(case.spacing_mm, case.axes))


def _open(member: Member, keep: Path | None = None) -> Scan:
    pieces = member.pieces()
    return open_scan(pieces if keep is None else _kept(pieces, keep), member.size, member.name)


def _kept(pieces: Iterator[bytes], path: Path) -> Iterator[bytes]:
    """A file's bytes, which on their way are written down, gzipped if they are not yet."""
    file = joined(pieces)
    with path.open("wb") as packed, contextlib.ExitStack() as stack:
        kept: Any = packed
        if not is_gzip(file):
            kept = stack.enter_context(igzip.IGzipFile("", "wb", fileobj=packed, mtime=0))
        while piece := file.read(PIECE):  # cut anew: how they were cut must not show in the gzip
            kept.write(piece)
            yield piece


def _check_match(image: Scan, label: Scan | None) -> None:
    """A label must lie on its image's grid, corner by corner within a tenth of a voxel."""
    if label is None:
        return
    apart = corner_distance_mm(image.header.grid, label.header.grid)
    if apart <= 0.1 * min(image.header.grid.spacing_mm):
        return
    shapes = f"shapes {image.header.shape} and {label.header.shape}"
    distance = shapes if math.isinf(apart) else f"corners {apart:.3g} mm apart"
    raise LiversegError(
        "LS321",
        f"{label.name} does not lie on {image.name}: {distance}",
        "a label with its image's shape and affine",
        "Resample or replace the label",
    )
