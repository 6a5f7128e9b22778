"""What corrects the headers of named cases: a CSV `case,x,y,z` or `case,x,y,z,axes`.

Spacings are in mm along the stored axes; axes are three letters that say where the stored axes point, such as
LPS: the first to the patient's left, the second to the back, the third up. Where the header is right in one
of the two, its cells stay empty.

Some public scans say 1 × 1 × 1 mm because their true spacing was lost on the way, and some lie turned or
mirrored; every volume and distance of theirs, or every side, is wrong until somebody says better. A
correction belongs to its case alone: it is in that case's key and in no other.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from liverseg_core.arrays import Spacing
from liverseg_core.errors import LiversegError
from liverseg_core.sources.source import Source
from liverseg_core.volumes.geometry import directions
from liverseg_core.volumes.nifti_header import SPACING_MM

COLUMNS = ["case", "x", "y", "z"]
AXES = "axes"


def override_spacings(source: Source, path: str | None) -> Source:
    """The source with the spacings and axes of a file in place of those in its headers.

    Args:
        source: From `open_source`.
        path: The CSV, or None for no corrections.

    Raises:
        LiversegError: LS212 for a file that can't be used, or names a case that the source has not.
    """
    if path is None:
        return source
    corrections = dict(_read(Path(path)))
    unknown = sorted(corrections.keys() - {case.case for case in source.cases})
    if unknown:
        what = f"{path} names {len(unknown)} unknown cases, the first is {unknown[0]!r}"
        raise LiversegError("LS212", what, f"cases of {source.path}", "Correct the names in the first column")
    return replace(
        source, cases=tuple(replace(case, **corrections.get(case.case, {})) for case in source.cases)
    )


def _read(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()  # a spreadsheet may begin it with a mark
        rows = [(number, [cell.strip() for cell in row]) for number, row in enumerate(csv.reader(lines), 1)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unusable(f"{path}: {error}") from None
    rows = [(number, row) for number, row in rows if any(row)]
    columns = rows[0][1] if rows else []
    if columns not in (COLUMNS, [*COLUMNS, AXES]):
        raise _unusable(f"{path} does not begin with the line {','.join(COLUMNS)}, or that and {AXES}")
    seen = set()
    for number, (case, *cells) in rows[1:]:
        if case in seen:
            raise _unusable(f"{path}, line {number}: {case!r} again")
        seen.add(case)
        try:
            yield case, _correction(cells, len(columns) - 1)
        except ValueError as error:
            raise _unusable(f"{path}, line {number}: {error}") from None


def _correction(cells: Sequence[str], count: int) -> dict[str, Any]:
    if len(cells) != count:
        raise ValueError(f"{len(cells)} cells behind the case instead of {count}")
    axes = "".join(cells[3:]).upper()
    if axes:
        directions(axes)
    return {"spacing_mm": _spacing(cells[:3]) if any(cells[:3]) or not axes else None, "axes": axes or None}


def _spacing(cells: Sequence[str]) -> Spacing:
    try:
        x, y, z = map(float, cells)
    except ValueError:
        raise ValueError(f"{','.join(cells)!r} are not three numbers") from None
    if not all(SPACING_MM[0] <= value <= SPACING_MM[1] for value in (x, y, z)):
        raise ValueError(f"{x:g}, {y:g}, {z:g} mm")
    return x, y, z


def _unusable(what: str) -> LiversegError:
    allowed = (
        f"a CSV with the columns {', '.join(COLUMNS)} and maybe {AXES}, one line a case, {SPACING_MM[0]} to "
        f"{SPACING_MM[1]:g} mm, axes as three letters such as LPS"
    )
    return LiversegError("LS212", what, allowed, "Correct the file")
