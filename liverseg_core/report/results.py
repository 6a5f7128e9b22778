"""What an evaluation found, as page and card tell it: means with intervals, and what others published."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liverseg_core.classes import GROUP_NAMES
from liverseg_core.evaluation.comparison import Comparison, compare, scores_of
from liverseg_core.evaluation.glossary import DICE
from liverseg_core.report import svg

Scores = Sequence[Mapping[str, Any]]
"""Cases as `CaseScore.record`."""

NAMES = dict(GROUP_NAMES)
POLICY_NAMES = {policy: term.line for policy, term in DICE.items()}


@dataclass(frozen=True)
class Results:
    """An evaluation's `metrics.json`."""

    scores: Scores
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class Published:
    """Mean Dice that others report on the Decathlon's cases; empty where they report none."""

    name: str
    liver: str
    liver_only: str
    tumour: str
    on: str
    source: str
    url: str


NO_DEVICE = "Research software, not a medical device."
PHANTOM = (
    "<b>Phantom results.</b> The cases are computed, no patient was scanned. No figure on this page says "
    "anything about patients, and none can be compared with figures of patients."
)

PUBLISHED = (
    Published(
        "AHNet, Clara Train's liver and tumour model",
        *("0.924", "", "0.465", "its own 27 validation cases of 131"),
        *("its model card; network: arXiv 1711.08580", "https://arxiv.org/abs/1711.08580"),
    ),
    Published(
        "3D U-Net with torchio patches",
        *("0.934", "0.927", "0.558", "its own 26 validation cases of 131, at half resolution"),
        *("the project that the recipe unet follows", ""),
    ),
    Published(
        "nnU-Net v2, ResEnc M and L among them",
        *("≈ 0.955", "", "≈ 0.64–0.69", "cross-validation, 131 cases; split from a mean of 0.801 to 0.816"),
        *("arXiv 2404.09556", "https://arxiv.org/abs/2404.09556"),
    ),
    Published(
        "nnU-Net in the Decathlon",
        *("0.96", "", "0.76", "its 70 hidden test cases"),
        *("arXiv 1904.08128", "https://arxiv.org/abs/1904.08128"),
    ),
)
CAVEAT = (
    "Published figures are of the Decathlon's own validation or test cases, other cases than these: they "
    "show what is usual, not which model is better. Where a source says only “liver”, it stands under "
    "liver with tumour. ≈: derived from what is published."
)


def read_results(evaluation: Path) -> Results:
    """What `evaluate` or `pool` wrote into a folder."""
    found = json.loads((evaluation / "metrics.json").read_text())
    return Results(found["cases"], found["summary"])


def mean_dice(scores: Scores, group: str, measure: str = "dice") -> Comparison:
    """Mean Dice of the cases that define it, with its bootstrap interval: the difference from nothing."""
    dice = scores_of(scores, group, measure)
    return compare(dice, dict.fromkeys(dice, 0.0))


def headline(scores: Scores) -> dict[str, dict[str, float | int | None]]:
    """Mean Dice by class group, with the ends of its interval and the number of cases."""
    found = {group: mean_dice(scores, group) for group in NAMES}
    return {
        group: {"mean": one.mean, "low": one.low, "high": one.high, "n": len(one.differences)}
        for group, one in found.items()
    }


def worst_first(scores: Scores) -> list[str]:
    """Case names, lowest Dice of liver and tumour together first."""
    return [case["case"] for case in sorted(scores, key=lambda one: (_worth(one), one["case"]))]


def hardest_tumours_first(scores: Scores) -> list[str]:
    """Case names, lowest tumour Dice first, those without tumours last."""

    def rank(case: Mapping[str, Any]) -> tuple[float, float, str]:
        dice = case["tumour"]["dice"]
        return 2.0 if dice is None else dice, _worth(case), case["case"]

    return [case["case"] for case in sorted(scores, key=rank)]


def _worth(case: Mapping[str, Any]) -> float:
    return float(case["liver"]["dice_lits"] + case["tumour"]["dice_lits"])


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """A figure; empty where there is none."""
    return "" if value is None else svg.number(value, digits, sign=sign)


def web_links(links: Mapping[str, str]) -> dict[str, str]:
    """Those that lead to a web page, and nowhere else: a click runs what other schemes hold."""
    return {name: url for name, url in links.items() if re.fullmatch(r"https?://[^\s<>]+", url)}


def with_interval(found: Comparison, digits: int = 3, *, sign: bool = False) -> str:
    """`0.912 (0.870 to 0.950)`, or the mean alone where there is no interval."""
    mean, low, high = (number(value, digits, sign=sign) for value in (found.mean, found.low, found.high))
    return f"{mean} ({low} to {high})" if low else mean
