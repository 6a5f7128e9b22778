"""The data report in a terminal: a row a case."""

from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from flows.console import plain_table, say
from liverseg_core.cases.data_report import HEADINGS, MEANING, CaseRow, cells
from liverseg_core.words import counted

SHOWN = 1000
"""Rows that a person may still look through."""


def case_table(rows: Sequence[CaseRow]) -> Table:
    """Every case, or of very many the first that there is something to say of; problems in a last column."""
    problems = any(row.problem for row in rows)
    headings = (*HEADINGS, "problem") if problems else HEADINGS
    if len(rows) > SHOWN:
        odd = [row for row in rows if row.flags or row.problem]
        shown = f"{min(len(odd), SHOWN)} of {counted(len(odd), 'odd case')}"
        say(f"Showing {shown}; --json lists all {len(rows)} cases")
        rows = odd[:SHOWN]
    return plain_table(headings, [cells(row)[: len(headings)] for row in rows])


def say_flags(rows: Sequence[CaseRow]) -> None:
    """Tell people how many cases have each flag, and what it means."""
    counts = Counter(flag for row in rows for flag in row.flags)
    for flag, meaning in MEANING.items():
        if counts[flag]:
            say(f"{counts[flag]:>4} {flag}: {meaning}")
