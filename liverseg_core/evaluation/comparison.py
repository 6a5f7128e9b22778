"""Whether one model is better than another: their difference case by case, and how sure it is.

Cases differ more than models do, so scores are compared within cases, and it is cases that are drawn again
(paired bootstrap, percentile interval). For tumours compare `dice_lits`: it is defined in cases that have
none, so that false positives there count.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

Scores = Mapping[str, float | None]
"""One measure by case; None where it is not defined."""

RESAMPLES = 10_000
DRAWN = 1 << 22
"""Cases drawn at a time, which bounds memory for large sets."""


@dataclass(frozen=True)
class Comparison:
    """How much higher one model scores than another on the same cases."""

    differences: Mapping[str, float]
    """First − second, by case."""
    left_out: tuple[str, ...]
    """Cases that not both have, or not both define."""
    mean: float | None
    """Mean difference; None without a case."""
    low: float | None
    """Lower end of the interval for the mean; None with fewer than two cases."""
    high: float | None
    """Upper end."""
    confidence: float


def compare(first: Scores, second: Scores, *, seed: int = 0, confidence: float = 0.95) -> Comparison:
    """Compare two models' scores case by case, with a bootstrap interval that the seed decides.

    Args:
        first: One model's score by case.
        second: The other's.
        seed: Decides which cases are drawn.
        confidence: Share of the resampled means that the interval holds, 0–1.

    Example:
        >>> found = compare({"a": 0.9, "b": 0.7, "c": None}, {"a": 0.8, "b": 0.7, "c": 0.1})
        >>> round(found.mean, 3), found.left_out
        (0.05, ('c',))
    """
    names = sorted(first.keys() | second.keys())
    pairs = {name: (first.get(name), second.get(name)) for name in names}
    differences = {
        name: ours - theirs
        for name, (ours, theirs) in pairs.items()
        if ours is not None and theirs is not None
    }
    left_out = tuple(name for name in names if name not in differences)
    values = np.array(list(differences.values()), np.float64)
    mean = float(values.mean()) if values.size else None
    low, high = (
        _interval(values, np.random.default_rng(seed), confidence) if values.size > 1 else (None, None)
    )
    return Comparison(differences, left_out, mean, low, high, confidence)


def scores_of(cases: Iterable[Mapping[str, Any]], group: str, measure: str) -> dict[str, float | None]:
    """One measure of one class group by case, from the records of an evaluation (`CaseScore.record`)."""
    return {case["case"]: case[group][measure] for case in cases}


def _interval(
    values: Float64[np.ndarray, " n"], rng: np.random.Generator, confidence: float
) -> tuple[float, float]:
    at_once = max(1, DRAWN // values.size)
    means = [
        values[rng.integers(values.size, size=(min(at_once, RESAMPLES - done), values.size))].mean(axis=1)
        for done in range(0, RESAMPLES, at_once)
    ]
    outside = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [outside, 1 - outside])
    return float(low), float(high)
