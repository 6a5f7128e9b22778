"""What becomes of labels, how that is chosen, and what is said of them."""

import numpy as np
import pytest

from liverseg_core.config import EvaluateConfig
from liverseg_core.inference.findings import findings
from liverseg_core.inference.postprocess import RULES, best_rules, postprocess, worth_of_rules

SPACING = (1.0, 2.0, 5.0)
"""A voxel is 0.01 ml."""


def body() -> np.ndarray:
    """A liver with a lesion of 8 voxels and one of 1, another liver with one, and a tumour in nowhere."""
    label = np.zeros((30, 20, 12), np.uint8, order="F")
    label[2:14, 2:14, 2:8] = 1
    label[4:6, 4:6, 3:5] = 2
    label[10, 10, 5] = 2
    label[20:24, 2:6, 2:5] = 1
    label[21, 3, 3] = 2
    label[20:26, 10:16, 8:11] = 2
    return label


def test_rules_are_off_by_default() -> None:
    label = body()
    assert postprocess(label, EvaluateConfig(), SPACING) is label


def test_the_largest_liver_stays_with_its_tumours() -> None:
    label = body()
    before = label.copy()
    found = postprocess(label, EvaluateConfig(largest_liver=True), SPACING)
    expected = label.copy()
    expected[15:] = 0
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(label, before)


def test_tumours_outside_the_liver_go() -> None:
    label = body()
    found = postprocess(label, EvaluateConfig(tumour_inside_liver=True), SPACING)
    expected = label.copy()
    expected[20:26, 10:16, 8:11] = 0
    np.testing.assert_array_equal(found, expected)


def test_small_lesions_become_liver_after_the_rest() -> None:
    rules = EvaluateConfig(largest_liver=True, tumour_inside_liver=True, smallest_lesion_ml=0.05)
    found = postprocess(body(), rules, SPACING)
    assert (found == 2).sum() == 8
    assert (found == 1).sum() == 12 * 12 * 6 - 8


def test_the_largest_part_may_be_a_tumour_alone() -> None:
    """Then with both rules nothing is left."""
    label = np.zeros((8, 8, 8), np.uint8, order="F")
    label[:4] = 2
    label[6, 6, 6] = 1
    assert not postprocess(label, EvaluateConfig(largest_liver=True, tumour_inside_liver=True), SPACING).any()


@pytest.mark.parametrize("label", [np.zeros((4, 5, 6), np.uint8), np.ones((4, 5, 6), np.uint8)])
def test_nothing_to_do(label: np.ndarray) -> None:
    rules = EvaluateConfig(largest_liver=True, tumour_inside_liver=True, smallest_lesion_ml=1)
    np.testing.assert_array_equal(postprocess(label, rules, SPACING), label)


def chosen(*cases: tuple[np.ndarray, np.ndarray]) -> tuple[bool, bool, float]:
    """Largest liver, tumour inside, smallest lesion."""
    largest, inside, smallest_ml = best_rules(worth_of_rules(*case, SPACING) for case in cases).values()
    return largest, inside, smallest_ml


def test_rules_are_chosen_by_what_they_do_to_validation_cases() -> None:
    """The second liver is wrong, so is the tumour in nowhere; the lesion of one voxel is real."""
    reference = body()
    reference[15:] = 0
    assert chosen((body(), reference), (reference, reference)) == (True, False, 0)
    assert chosen((reference, reference)) == (False, False, 0), "as few rules as will do"
    spotted = reference.copy(order="F")
    spotted[3:12:4, 12, 6] = 2  # false alarms of a voxel
    reference[10, 10, 5] = 1
    assert chosen((spotted, reference)) == (False, False, 0.05)


def test_a_false_alarm_in_a_healthy_case_costs() -> None:
    healthy = np.ones((6, 6, 6), np.uint8)
    alarmed = healthy.copy()
    alarmed[2, 2, 2:4] = 2
    assert chosen((alarmed, healthy)) == (False, False, 0.05)


def test_no_rule_comes_first() -> None:
    assert EvaluateConfig(**RULES[0]) == EvaluateConfig()


def test_findings_of_a_disc() -> None:
    """A tilted ellipse in a plane of 1 × 1 mm pixels is as long as it is; the other plane's is shorter."""
    x, y = np.meshgrid(np.arange(80) - 40, np.arange(80) - 40, indexing="ij")
    along, across = (x + y) / np.sqrt(2), (x - y) / np.sqrt(2)
    label = np.ones((80, 80, 4), np.uint8, order="F")
    label[:, :, 1][(along / 30) ** 2 + (across / 12) ** 2 <= 1] = 2
    label[:, :, 2][(along / 10) ** 2 + (across / 10) ** 2 <= 1] = 2
    label[0, 0, 3] = 2
    found = findings(label, (1.0, 1.0, 3.0))
    assert found["lesions"] == 2
    assert found["largest_diameter_mm"] == pytest.approx(60, abs=1.5)
    assert found["liver_ml"] == pytest.approx(80 * 80 * 4 * 0.003)
    assert found["tumour_ml"] == pytest.approx((label == 2).sum() * 0.003)
    assert found["burden"] == pytest.approx((label == 2).mean())


def test_findings_of_little() -> None:
    label = np.zeros((5, 5, 5), np.uint8, order="F")
    empty = {"liver_ml": 0, "tumour_ml": 0, "burden": None, "lesions": 0, "largest_diameter_mm": 0}
    assert findings(label, SPACING) == empty
    label[2, 2, 2] = 2
    assert findings(label, SPACING)["largest_diameter_mm"] == round(np.sqrt(2), 2)
    label[1:4, 2, 2] = 2  # along x, of 1 mm
    label[2, 2, 4] = 2
    assert findings(label, SPACING)["largest_diameter_mm"] == round(2 + np.sqrt(2), 2)
    assert findings(label, SPACING)["lesions"] == 2
