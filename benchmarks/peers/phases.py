"""Where a process spends its time: seconds inside some functions, less those inside others of them."""

import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

SPENT: dict[str, list[float]] = {}
"""Wall and CPU seconds of this process by phase. What its children use is not in them."""
_inside: list[list[float]] = []


def timed(owner: Any, name: str, phase: str) -> None:
    """Have what a module or class calls by a name counted as a phase."""
    setattr(owner, name, counted(getattr(owner, name), phase))


def counted(function: Callable[..., Any], phase: str) -> Callable[..., Any]:
    """A function whose calls count as a phase."""

    @functools.wraps(function)
    def measured(*arguments: Any, **named: Any) -> Any:
        began, inner = _now(), [0.0, 0.0]
        _inside.append(inner)
        try:
            return function(*arguments, **named)
        finally:
            _inside.pop()
            took = _less(_now(), began)
            SPENT[phase] = _and(SPENT.get(phase, [0.0, 0.0]), _less(took, inner))
            if _inside:
                _inside[-1][:] = _and(_inside[-1], took)

    return measured


def waited_for(items: Iterable[Any], phase: str) -> Iterator[Any]:
    """The same items; waiting for each counts as a phase."""
    take = counted(functools.partial(next, iter(items), None), phase)
    while (item := take()) is not None:
        yield item


def until_now() -> None:
    """Count what the process did since it was started, at the time BEGAN, as a phase."""
    SPENT["start"] = [time.time() - float(os.environ["BEGAN"]), time.process_time()]


def spent() -> dict[str, dict[str, float]]:
    """All phases, as plain JSON values."""
    return {phase: {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2)} for phase, (wall, cpu) in SPENT.items()}


def _now() -> list[float]:
    return [time.perf_counter(), time.process_time()]


def _and(a: list[float], b: list[float]) -> list[float]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _less(a: list[float], b: list[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]
