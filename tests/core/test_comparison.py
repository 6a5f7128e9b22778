"""The paired bootstrap between two models."""

import numpy as np
import pytest
from scipy import stats

from liverseg_core.evaluation import comparison
from liverseg_core.evaluation.comparison import Comparison, compare, scores_of


def scores(values: np.ndarray) -> dict[str, float | None]:
    return {f"case_{n:03}": float(value) for n, value in enumerate(values)}


@pytest.fixture
def champion() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.2, 0.9, 40)


def test_the_interval_is_that_of_a_reference(champion: np.ndarray) -> None:
    candidate = champion + np.random.default_rng(1).normal(0.02, 0.05, champion.size)
    found = compare(scores(candidate), scores(champion))
    expected = stats.bootstrap(
        (candidate - champion,),
        np.mean,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert found.mean == pytest.approx((candidate - champion).mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.001)
    assert found.differences["case_007"] == pytest.approx(candidate[7] - champion[7])


def test_pairing_sees_a_small_difference_between_very_different_cases(champion: np.ndarray) -> None:
    candidate = champion + np.random.default_rng(3).normal(0.01, 0.01, champion.size)
    found = compare(scores(candidate), scores(champion))
    assert found.low is not None
    assert 0 < found.low < 0.01


def test_the_seed_decides(champion: np.ndarray) -> None:
    pair = scores(champion[::-1]), scores(champion)
    assert compare(*pair, seed=3) == compare(*pair, seed=3)
    assert compare(*pair, seed=3).low != compare(*pair, seed=4).low


def test_exchanging_the_models_turns_the_sign(champion: np.ndarray) -> None:
    one, other = scores(champion[::-1] ** 2), scores(champion)
    there, back = compare(one, other), compare(other, one)
    assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low))  # type: ignore[operator]


def test_the_interval_covers_the_truth_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "RESAMPLES", 1000)
    rng = np.random.default_rng(4)
    found = [compare(scores(rng.normal(0.1, 1, 60)), scores(np.zeros(60)), seed=k) for k in range(300)]
    covered = sum(one.low <= 0.1 <= one.high for one in found)  # type: ignore[operator]
    assert 0.90 < covered / 300 < 0.98


@pytest.mark.parametrize("at_once", [1, 100, 1 << 20])
def test_memory_bounds_only_how_many_are_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch, champion: np.ndarray, at_once: int
) -> None:
    expected = compare(scores(champion), scores(champion[::-1]))
    monkeypatch.setattr(comparison, "DRAWN", at_once)
    found = compare(scores(champion), scores(champion[::-1]))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_cases_that_not_both_define_are_named_and_left_out() -> None:
    found = compare({"a": 0.9, "b": None, "c": 0.4, "d": 0.5}, {"a": 0.8, "b": 0.1, "d": 0.5, "e": 1.0})
    assert found.differences == pytest.approx({"a": 0.1, "d": 0})
    assert found.left_out == ("b", "c", "e")


def test_too_few_cases_for_an_interval() -> None:
    assert compare({}, {}) == Comparison({}, (), None, None, None, 0.95)
    one = compare({"a": 0.75}, {"a": 0.5})
    assert (one.mean, one.low, one.high) == (0.25, None, None)


def test_scores_of_an_evaluation() -> None:
    records = [{"case": "a", "tumour": {"dice": None, "dice_lits": 1.0}}]
    assert scores_of(records, "tumour", "dice_lits") == {"a": 1.0}
