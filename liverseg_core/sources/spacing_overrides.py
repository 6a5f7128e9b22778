"""Spacings that correct the headers of named cases: a CSV `case,x,y,z` in mm, along the stored axes.

Some public scans say 1 × 1 × 1 mm because their true spacing was lost on the way; every volume and distance
of theirs is wrong until somebody says better. A correction belongs to its case alone: it is in that case's
key and in no other.
"""

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from liverseg_core.arrays import Spacing
from liverseg_core.errors import LiversegError
from liverseg_core.sources.source import Source
from liverseg_core.volumes.nifti_header import SPACING_MM

COLUMNS = ["case", "x", "y", "z"]


def override_spacings(source: Source, path: str | None) -> Source:
    """The source with the spacings of a file in place of those in its headers.

    Args:
        source: From `open_source`.
        path: The CSV, or None for no corrections.

    Raises:
        LiversegError: LS212 for a file that can't be used, or names a case that the source has not.
    """
    if path is None:
        return source
    spacings = dict(_read(Path(path)))
    unknown = sorted(spacings.keys() - {case.case for case in source.cases})
    if unknown:
        what = f"{path} names {len(unknown)} unknown cases, the first is {unknown[0]!r}"
        raise LiversegError("LS212", what, f"cases of {source.path}", "Correct the names in the first column")
    return replace(
        source, cases=tuple(replace(case, spacing_mm=spacings.get(case.case)) for case in source.cases)
    )


def _read(path: Path) -> Iterator[tuple[str, Spacing]]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()  # a spreadsheet may begin it with a mark
        rows = [(number, [cell.strip() for cell in row]) for number, row in enumerate(csv.reader(lines), 1)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unusable(f"{path}: {error}") from None
    rows = [(number, row) for number, row in rows if any(row)]
    if not rows or rows[0][1] != COLUMNS:
        raise _unusable(f"{path} does not begin with the line {','.join(COLUMNS)}")
    seen = set()
    for number, (case, *cells) in rows[1:]:
        try:
            x, y, z = map(float, cells)
        except ValueError:
            raise _unusable(f"{path}, line {number}: not a case and three numbers") from None
        if not all(SPACING_MM[0] <= value <= SPACING_MM[1] for value in (x, y, z)):
            raise _unusable(f"{path}, line {number}: {x:g}, {y:g}, {z:g} mm")
        if case in seen:
            raise _unusable(f"{path}, line {number}: {case!r} again")
        seen.add(case)
        yield case, (x, y, z)


def _unusable(what: str) -> LiversegError:
    allowed = f"a CSV with the columns {', '.join(COLUMNS)}, one line a case, {SPACING_MM[0]} to "
    return LiversegError("LS212", what, f"{allowed}{SPACING_MM[1]:g} mm", "Correct the file")
