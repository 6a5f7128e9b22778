"""How a verb ends whose scans, or some of them, could not be used."""

from collections.abc import Mapping
from pathlib import Path

import typer

from flows.console import say
from liverseg_core.errors import ExitCode, LiversegError


def end_batch(errors: Mapping[Path, LiversegError], some_done: bool) -> None:
    """Name each bad scan and end with the exit code that says so; nothing where there is none.

    Args:
        errors: Why a scan could not be used.
        some_done: Whether others could.
    """
    for scan, error in errors.items():
        say(f"{scan}: {error}")
    if errors:
        raise typer.Exit(ExitCode.PARTIAL if some_done else next(iter(errors.values())).exit_code)
