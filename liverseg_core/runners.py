"""How a function is mapped over cases. The serial runner here defines the semantics; Dask's must match it."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import psutil  # type: ignore[import-untyped]

from liverseg_core.errors import LiversegError, as_coded

Item = TypeVar("Item")
Result = TypeVar("Result")


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
                coded = as_coded(item, error)
                # The outcome may be kept to the end, and an error keeps what its frames held: whole scans.
                traceback.clear_frames(error.__traceback__)
                yield Outcome(item, error=coded)
