"""Lesions matched and counted: merges, splits and grazes drawn by hand, and what holds for any mask."""

import json
import math

import cc3d
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from liverseg_core.evaluation.lesion_matching import find_lesions, match_lesions
from liverseg_core.evaluation.lesions import CRITERIA, SIZES, Detection, Lesions, Match
from liverseg_core.evaluation.surface import surface_distances

VOXEL_MM = (0.5, 0.8, 2.5)
MASKS = hnp.arrays(np.bool_, st.just((5, 4, 5)))


def drawn(text: str) -> np.ndarray:
    """A mask of one slice: `#` is tumour."""
    return np.array([[letter == "#" for letter in line.strip()] for line in text.split()])[..., None]


def totals(lesions: Lesions, criterion: str = "iou_50") -> tuple[int, int, int, int]:
    found = sum(lesions.counts[criterion].values(), Detection())
    return found.reference, found.detected, found.prediction, found.correct


HAND_MADE = {
    "perfect": ("##..##", "##..##", (2, 2, 2, 2), (2, 2, 2, 2)),
    "missed and invented": ("##....", "....##", (1, 0, 1, 0), (1, 0, 1, 0)),
    "a merge: one predicted covers two": ("######", "##.###", (2, 2, 1, 1), (2, 2, 1, 1)),
    "a split: two predicted cover one": ("##.###", "######", (1, 1, 2, 2), (1, 1, 2, 2)),
    "a wide bridge is no detection": ("##########", "##......##", (2, 0, 1, 0), (2, 2, 1, 1)),
    "exactly half is not above half": ("##..", "####", (1, 0, 1, 0), (1, 1, 1, 1)),
    "corners do not connect": ("#. .#", "#. .#", (2, 2, 2, 2), (2, 2, 2, 2)),
    "a graze beside a match": (
        "####.. ....## ....##".replace(" ", "\n") + "\n######",
        "####.. ...... ......".replace(" ", "\n") + "\n#.....",
        (2, 1, 2, 1),
        (2, 2, 2, 2),
    ),
    "a part of a split that mostly lies beside is false": (
        "###.### ....### ....###".replace(" ", "\n"),
        "#####.. ....... .......".replace(" ", "\n"),
        (1, 1, 2, 1),
        (1, 1, 2, 2),
    ),
}


@pytest.mark.parametrize(("prediction", "reference", "matched", "touched"), HAND_MADE.values(), ids=HAND_MADE)
def test_hand_made(
    prediction: str, reference: str, matched: tuple[int, ...], touched: tuple[int, ...]
) -> None:
    lesions = find_lesions(drawn(prediction), drawn(reference), (1, 1, 1))
    assert totals(lesions) == matched
    assert totals(lesions, "iou_0") == touched
    exchanged = find_lesions(drawn(reference), drawn(prediction), (1, 1, 1))
    assert totals(exchanged) == matched[2:] + matched[:2], "a merge seen from the other side is a split"


def test_a_merge_and_a_split_in_one_match() -> None:
    """Prediction 1 covers A and most of B, prediction 2 the rest of B."""
    (group,) = match_lesions(
        {(1, 1): 20, (1, 2): 30, (2, 2): 15}, np.array([0, 55, 15]), np.array([0, 20, 50])
    )
    assert (group.predictions, sorted(group.references)) == ([1, 2], [1, 2])
    assert group.overlap.jaccard == pytest.approx(65 / 75)


def test_matches_are_measured_over_what_they_hold() -> None:
    prediction, reference = np.zeros((2, 12, 12, 8), np.bool_)
    reference[2:8, 2:8, 0:5] = True  # cut off by the volume
    prediction[2:8, 2:5, 0:5] = prediction[2:8, 6:9, 0:5] = True
    alone = prediction.copy(), reference.copy()
    prediction[11, 11, 7] = True  # invented, and no part of the match
    lesions = find_lesions(prediction, reference, VOXEL_MM)
    (match,) = lesions.matches
    assert (match.predictions, match.references) == (2, 1)
    assert match.dice == pytest.approx(2 * 150 / (180 + 180))
    assert match.rvd == 0
    assert match.assd_mm == surface_distances(*alone, VOXEL_MM).assd_mm
    assert lesions.summary()["matched"] == {
        "n": 1,
        "dice": match.dice,
        "rvd": match.rvd,
        "assd_mm": match.assd_mm,
    }


@pytest.mark.parametrize(
    ("diameter_mm", "size"),
    [
        (4, "below_10_mm"),
        (9.9, "below_10_mm"),
        (10.1, "from_10_to_20_mm"),
        (19.9, "from_10_to_20_mm"),
        (21, "from_20_mm"),
    ],
)
def test_sizes_are_of_balls_in_millimetres(diameter_mm: float, size: str) -> None:
    spacing_mm = (0.5, 0.5, 1.0)
    mask = np.zeros((60, 60, 30), np.bool_)
    voxels = round(math.pi / 6 * diameter_mm**3 / math.prod(spacing_mm))
    mask.reshape(-1)[:voxels] = True
    counts = find_lesions(mask, mask, spacing_mm).counts["iou_50"]
    assert {name for name, found in counts.items() if found.reference} == {size}


def test_rates() -> None:
    found = Detection(reference=8, detected=4, prediction=5, correct=3)
    assert (found.recall, found.precision) == (0.5, 0.6)
    assert found.f1 == pytest.approx(2 * 0.5 * 0.6 / 1.1)
    missed, invented = Detection(reference=2), Detection(prediction=2)
    assert (missed.recall, missed.precision, missed.f1) == (0, None, 0)
    assert (invented.recall, invented.precision, invented.f1) == (None, 0, 0)
    assert (Detection().recall, Detection().precision, Detection().f1) == (None, None, None)
    fragments = Detection(prediction=3, correct=1)  # of a larger lesion, which is counted in its own class
    assert (fragments.recall, fragments.precision, fragments.f1) == (None, pytest.approx(1 / 3), None)


def test_nothing_predicted_and_nothing_there() -> None:
    empty, one = np.zeros((2, 4, 4, 4), np.bool_)
    one[1, 1, 1] = True
    assert find_lesions(empty, empty, VOXEL_MM) == Lesions()
    assert totals(find_lesions(empty, one, VOXEL_MM)) == (1, 0, 0, 0)
    assert totals(find_lesions(one, empty, VOXEL_MM)) == (0, 0, 1, 0)
    assert Lesions().summary()["matched"] == {"n": 0, "dice": None, "rvd": None, "assd_mm": None}


@given(MASKS, MASKS)
def test_every_pair_above_one_half_is_matched_and_none_below(
    prediction: np.ndarray, reference: np.ndarray
) -> None:
    lesions = find_lesions(prediction, reference, VOXEL_MM)
    ours, true = (cc3d.connected_components(mask, connectivity=6) for mask in (prediction, reference))
    for p in range(1, ours.max() + 1):
        for r in set(true[ours == p].tolist()) - {0}:
            iou = ((ours == p) & (true == r)).sum() / ((ours == p) | (true == r)).sum()
            dice = 2 * iou / (1 + iou)
            # A match holds at least this pair, and what joined only made it better.
            assert iou <= 0.5 or any(match.dice >= dice - 1e-12 for match in lesions.matches)
    assert all(match.dice > 2 / 3 for match in lesions.matches), "IoU > 1/2"
    assert totals(lesions, "iou_0") == (
        true.max(initial=0),
        len(set(true[prediction].tolist()) - {0}),
        ours.max(initial=0),
        len(set(ours[reference].tolist()) - {0}),
    )


@given(MASKS)
def test_a_perfect_prediction_finds_everything(mask: np.ndarray) -> None:
    lesions = find_lesions(mask, mask, VOXEL_MM)
    number = cc3d.connected_components(mask, connectivity=6).max(initial=0)
    assert totals(lesions) == (number,) * 4
    assert [match.dice for match in lesions.matches] == [1.0] * number


COUNTS = st.builds(Detection, *[st.integers(0, 1000)] * 4)
MATCHES = st.builds(
    Match, st.integers(1, 3), st.integers(1, 3), st.just(0.8), st.just(0.1), st.none() | st.just(1.5)
)
LESIONS = st.builds(
    Lesions,
    st.fixed_dictionaries({c: st.fixed_dictionaries(dict.fromkeys(SIZES, COUNTS)) for c in CRITERIA}),
    st.lists(MATCHES, max_size=3).map(tuple),
)


@given(LESIONS, LESIONS, LESIONS)
def test_merging_is_associative_and_has_an_identity(a: Lesions, b: Lesions, c: Lesions) -> None:
    assert (a + b) + c == a + (b + c)
    assert a + Lesions() == a == Lesions() + a
    assert (a + b).counts == (b + a).counts
    assert Lesions.from_record(json.loads(json.dumps(a.record(), allow_nan=False))) == a
