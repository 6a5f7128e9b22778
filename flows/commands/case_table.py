"""The data report in a terminal: a row a case."""

from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from flows.console import plain_table, say
from liverseg_core.data_report import HEADINGS, MEANING, CaseRow, cells


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
