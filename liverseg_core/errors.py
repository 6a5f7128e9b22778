"""Coded errors. The first digit of a code is the exit code of its class (docs/errors.md)."""

import traceback
from enum import IntEnum
from pathlib import Path

SAID = 200
"""Characters of a foreign error that are shown."""


class ExitCode(IntEnum):
    """What the process exits with, by class of error."""

    DONE = 0
    BUG = 1
    USAGE = 2
    BAD_INPUT = 3
    UNREACHABLE = 4
    CORRUPT = 5
    LOCKED = 6
    RESOURCES = 7
    PARTIAL = 8
    REFUSED = 9
    INTERRUPTED = 130
    TERMINATED = 143


class LiversegError(Exception):
    """An error a user can act on: what is wrong, what is allowed, what to do.

    Args:
        code: `LSnnn`; its first digit is the exit code.
        what: What was found, naming file, member, field and value.
        allowed: What would have been accepted.
        remedy: What the user can do now.

    Example:
        >>> str(LiversegError("LS301", "scan.nii.gz: 5 dimensions", "3", "Split it into 3-D files"))
        'LS301: scan.nii.gz: 5 dimensions. Allowed: 3. Split it into 3-D files.'
    """

    def __init__(self, code: str, what: str, allowed: str, remedy: str) -> None:
        # All four go to Exception.args: an error crosses a Dask worker's pickle boundary whole.
        super().__init__(code, what, allowed, remedy)
        self.code, self.what, self.allowed, self.remedy = code, what, allowed, remedy

    @property
    def exit_code(self) -> ExitCode:
        """The process exit code of this error's class."""
        return ExitCode(int(self.code[2]))

    def __str__(self) -> str:
        stop = "" if self.remedy.endswith("?") else "."
        return f"{self.code}: {self.what}. Allowed: {self.allowed}. {self.remedy}{stop}"


class Interrupted(LiversegError):
    """A signal stopped the work after everything needed to go on was saved."""

    def __init__(self, signal_number: int, what: str) -> None:
        super().__init__(
            "LS100", what, "stopping at any time", "Run the same command again to go on from there"
        )
        self.args = (signal_number, what)  # what the constructor takes, for pickle
        self.signal_number = signal_number

    @property
    def exit_code(self) -> ExitCode:
        """130 after SIGINT, 143 after SIGTERM."""
        return ExitCode(128 + self.signal_number)


def as_coded(item: object, error: Exception) -> LiversegError:
    """What stopped an item as a coded error: LS703 for want of memory, LS222 for what nobody foresaw."""
    if isinstance(error, LiversegError):
        return error
    name = getattr(item, "case", item)
    if isinstance(error, MemoryError):
        allowed, remedy = "a scan that fits in memory", "Use fewer workers, or leave the case out"
        return LiversegError("LS703", f"too little memory for {name}", allowed, remedy)
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(last.filename).name}, line {last.lineno}"
    return LiversegError(
        "LS222",
        f"{name} failed as nobody foresaw: {described(error)} ({where})",
        "a case like the others",
        "Leave the case out, and report this line",
    )


def described(error: Exception) -> str:
    """A foreign error: its class and the beginning of what it says, which may be a page, or another error."""
    try:
        text = str(error).strip().partition("\n")[0][:SAID]
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
