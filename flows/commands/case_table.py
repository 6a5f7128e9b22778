"""The data report in a terminal: a row a case."""

from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from flows.console import plain_table, say
from liverseg_core.data_report import MEANING, CaseRow

HEADINGS = ("case", "shape", "spacing mm", "axes", "body HU", "liver ml", "tumour ml", "tumours", "flags")


def cells(row: CaseRow) -> list[str]:
    """The row's texts under `HEADINGS`, then its problem; what is not known is empty."""
    flags = [
        f"{flag} ({', '.join(row.same_voxels_as)})" if flag == "duplicate-voxels" else flag
        for flag in row.flags
    ]
    return [
        row.case,
        "×".join(map(str, row.shape or ())),
        " ".join(f"{value:.4g}" for value in row.spacing_mm or ()),
        row.orientation or "",
        " ".join(map(str, (row.body_hu or {}).values())),
        "" if row.liver_ml is None else f"{row.liver_ml:.0f}",
        "" if row.tumour_ml is None else f"{row.tumour_ml:.1f}",
        "" if row.tumours is None else str(row.tumours),
        ", ".join(flags),
        row.problem or "",
    ]


def case_table(rows: Sequence[CaseRow]) -> Table:
    """Every case; a column for problems where there are any."""
    problems = any(row.problem for row in rows)
    headings = (*HEADINGS, "problem") if problems else HEADINGS
    return plain_table(headings, [cells(row)[: len(headings)] for row in rows])


def say_flags(rows: Sequence[CaseRow]) -> None:
    """Tell people how many cases have each flag, and what it means."""
    counts = Counter(flag for row in rows for flag in row.flags)
    for flag, meaning in MEANING.items():
        if counts[flag]:
            say(f"{counts[flag]:>4} {flag}: {meaning}")
