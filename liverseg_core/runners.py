"""How a function is mapped over cases. The serial runner here defines the semantics; Dask's must match it."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import psutil  # type: ignore[import-untyped]

from liverseg_core.errors import LiversegError

Item = TypeVar("Item")
Result = TypeVar("Result")
SAID = 200
"""Characters of an unforeseen error that are shown."""


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What became of one item: a result, or the coded error that stopped it alone."""

    item: Item
    result: Result | None = None
    error: LiversegError | None = None


class Runner(Protocol):
    """Maps a function over items and yields outcomes as they complete, in any order.

    An error becomes that item's outcome: a coded one as it is, and what nobody thought of as LS222. Of many
    other people's files one is odder than all that was foreseen, and it ends nothing but itself.
    """

    @property
    def memory_per_task(self) -> int | None:
        """Bytes that one item may take besides what its process holds; None where nobody knows."""
        ...

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[Outcome[Item, Result]]:
        """Call `function` on every item."""
        ...


class SerialRunner:
    """One item after the other, in this process."""

    @property
    def memory_per_task(self) -> int:
        """What the machine has to give."""
        return int(psutil.virtual_memory().available)

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[Outcome[Item, Result]]:
        """Call `function` on every item, in order."""
        for item in items:
            try:
                yield Outcome(item, function(item))
            except Exception as error:
                yield Outcome(item, error=as_coded(item, error))


def as_coded(item: object, error: Exception) -> LiversegError:
    """What stopped an item as a coded error: LS703 for want of memory, LS222 for what nobody foresaw."""
    if isinstance(error, LiversegError):
        return error
    name = getattr(item, "case", item)
    if isinstance(error, MemoryError):
        allowed, remedy = "a scan that fits in memory", "Use fewer workers, or leave the case out"
        return LiversegError("LS703", f"too little memory for {name}", allowed, remedy)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return LiversegError(
        "LS222",
        f"{name} failed as nobody foresaw: {type(error).__name__}{_said(error)} "
        f"({Path(where.filename).name}, line {where.lineno})",
        "a case like the others",
        "Leave the case out, and report this line",
    )


def _said(error: Exception) -> str:
    """The beginning of what an error says, which may be a page, or another error."""
    try:
        text = str(error).strip().partition("\n")[0][:SAID]
    except Exception:
        return ""
    return f": {text}" if text else ""
