"""What people see in a terminal: progress and tables on stderr, data on stdout."""

import contextlib
import io
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from flows.run_report import RunReport
from liverseg_core.classes import GROUP_NAMES
from liverseg_core.words import counted
from tasks.context import Report

TALK = Console(stderr=True, highlight=False)
# In a file or a pipe a table is as wide as its rows: a folded path is none.
DATA = Console(highlight=False, width=None if sys.stdout.isatty() else 1000)
DICE_COLUMNS = ("mean", "median", "sd", "empty = 1", "pooled")
"""Under the policies for classes that neither label has, as docs/measures.md tells them."""

_report: ContextVar[Report | None] = ContextVar("report", default=None)


def show_anyhow() -> None:
    """Let no letter that a terminal or pipe has no code for end the command: it shows as a question mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def say(line: str) -> None:
    """Tell people one line, which is not folded."""
    TALK.print(plain(line), soft_wrap=True, markup=False)


def plain(text: str) -> str:
    """The text without what steers a terminal or begins a line: names come from other people's files."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def current_report() -> Report:
    """The report of the surrounding `watching`; outside one, that of the flow run."""
    return _report.get() or RunReport()


@contextlib.contextmanager
def watching() -> Iterator[Report]:
    """Show the stages' progress: bars in a terminal, a line for each finished stage elsewhere."""
    report = _BarReport()
    token = _report.set(report)
    try:
        with report.bars:
            yield report
    finally:
        _report.reset(token)


class _BarReport:
    """A progress bar for the stage at work, and a line for each that is done."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        self.bars = Progress(*columns, console=TALK, transient=True, disable=not TALK.is_terminal)
        self.tasks: dict[str, TaskID] = {}
        self.first: dict[str, tuple[int, float]] = {}
        self.lap = time.monotonic()

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(stage, total=total, note="", rate="")
        if done and stage not in self.first:
            # The rate counts from here: before, there was only starting, and what a killed run had done.
            self.first[stage] = done, time.monotonic()
            self.bars.reset(self.tasks[stage], completed=done)
        at, since = self.first.get(stage, (0, self.lap))
        seconds = time.monotonic() - since
        rate = f"{(done - at) / seconds:.1f}/s" if done > at and seconds > 1 else ""
        self.bars.update(self.tasks[stage], completed=done, total=total, note=note, rate=rate)

    def finished(self, stage: str, note: str, cached: bool) -> None:
        if stage in self.tasks:
            self.bars.remove_task(self.tasks.pop(stage))
            self.first.pop(stage, None)
        lap, self.lap = self.lap, time.monotonic()
        say(f"{stage:<10}{self.lap - lap:6.1f} s  {'Cached  ' * cached}{note}")


def dice_table(summary: Mapping[str, Any]) -> Table:
    """Mean Dice by class under the three policies for classes that neither label has."""
    cases = counted(summary["cases"], "validation case")
    table = Table(title=f"Native-space Dice, {cases}", title_justify="left")
    for heading in ("", *DICE_COLUMNS):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in dice_rows(summary):
        table.add_row(*row)
    return table


def dice_rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """A class's name, then its texts under `DICE_COLUMNS`."""
    for group, name in GROUP_NAMES.items():
        policies = summary[group]["policies"]
        values = [policies["nan"][part] for part in ("mean", "median", "sd")]
        values += [policies["lits"]["mean"], policies["pooled"]["mean"]]
        yield name, *("–" if value is None else f"{value:.3f}" for value in values)


def plain_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table of values as they are."""
    table = Table(*headings)
    for row in rows:
        table.add_row(*(escape(plain(str(value))) for value in row))
    return table
