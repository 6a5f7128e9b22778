"""Who becomes champion: two versions compared case by case on the same validation cases, and why."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from liverseg_core.config import RegisterConfig
from liverseg_core.evaluation.comparison import Comparison, Scores, compare, scores_of
from liverseg_core.words import counted

COMPARED = {"liver": "dice", "tumour": "dice_lits"}
"""Class groups that count alike, and the measure of each; a false tumour in a healthy liver counts too."""
NAMED = 5
"""So many cases are named in a reason."""
ROUNDING = 1e-12


@dataclass(frozen=True)
class Seen:
    """Which cases a model was measured on and which had been shown to it before, by digests of their scans.

    Args:
        validation: Digest of what the cases are: equal where scores may be compared.
        cases: The validation cases' names → digests of their scans.
        training: Digests of the scans it was trained on.
        before: Digests of the scans that the weights it started from were trained on.
        out_of_fold: Whether each case was scored by a member of an ensemble that did not train on it.
    """

    validation: str
    cases: Mapping[str, str]
    training: Sequence[str]
    before: Sequence[str] = ()
    out_of_fold: bool = False

    def shown(self) -> list[str]:
        """Names of the validation cases that the model had trained on when it was measured."""
        known = {*self.before, *(() if self.out_of_fold else self.training)}
        return sorted(name for name, scan in self.cases.items() if scan in known)


@dataclass(frozen=True)
class Measured:
    """What a version was found to be worth, case by case."""

    seen: Seen
    scores: Mapping[str, Scores]
    """By class group: the `COMPARED` measure by case."""
    evaluation: str | None = None
    """Key of the evaluation that they are from, which knows more of the same cases."""

    @classmethod
    def of(cls, seen: Seen, cases: Sequence[Mapping[str, Any]], evaluation: str | None = None) -> "Measured":
        """From the records of an evaluation (`CaseScore.record`), and its key."""
        scores = {group: scores_of(cases, group, name) for group, name in COMPARED.items()}
        return cls(seen, scores, evaluation)

    @classmethod
    def from_json(cls, text: str) -> "Measured":
        """Read back what `to_json` gave."""
        found = json.loads(text)
        return cls(Seen(**found["seen"]), found["scores"], found.get("evaluation"))

    def to_json(self) -> str:
        """As it is stored with the version's run."""
        return json.dumps(asdict(self), sort_keys=True, indent=1) + "\n"


@dataclass(frozen=True)
class Rival:
    """The champion that a candidate is compared with; `measured` is None where its scores are not at hand."""

    name: str
    measured: Measured | None
    alike: bool = True
    """Whether both were scored by the same definitions."""


def decide(candidate: Measured | None, champion: Rival | None, limits: RegisterConfig) -> tuple[bool, str]:
    """Say whether a candidate becomes champion, and why. The same versions always get the same answer.

    It does unless its mean Dice, over classes and cases alike, is lower by more than `limits.tolerance`, or
    one class surely lost more than its limit: the other's gain does not pay for that. "Surely": the upper
    end of the paired bootstrap's interval. Not its lower end: of few cases that end is the worst one, and no
    better model would ever pass.

    Args:
        candidate: What it is worth; None where there are no scores of it.
        champion: Whom it would replace; None when there is no champion.
        limits: What is tolerated.
    """
    refused = _inadmissible(candidate, champion)
    if refused:
        return False, f"not champion: {refused}"
    if champion is None:
        return True, "champion: there was none"
    assert candidate
    assert champion.measured
    ours, theirs = candidate.scores, champion.measured.scores
    found = {group: compare(ours[group], theirs[group], confidence=limits.confidence) for group in COMPARED}
    found = {group: one for group, one in found.items() if one.mean is not None}
    if not found:
        return False, "not champion: there is no Dice to compare"
    mean = math.fsum(one.mean or 0.0 for one in found.values()) / len(found)
    lost = [f"{group} Dice" for group, one in found.items() if _surely(one) < -_limit(limits, group)]
    better = mean >= -limits.tolerance - ROUNDING and not lost
    why = f"; too much {' and '.join(lost)} lost" if lost else ""
    return better, f"{'' if better else 'not '}champion: {_told(champion.name, mean, found)}{why}"


def _inadmissible(candidate: Measured | None, champion: Rival | None) -> str | None:
    """What forbids any comparison."""
    if candidate is None:
        return "there are no scores of its validation cases, or not those that were registered"
    if shown := candidate.seen.shown():
        named = ", ".join(shown[:NAMED]) + ("…" if len(shown) > NAMED else "")
        cases = counted(len(candidate.seen.cases), "validation case")
        return f"it had trained on {len(shown)} of its {cases} ({named})"
    if champion and champion.measured is None:
        return f"there are no scores of {champion.name} on the same validation cases"
    if champion and not champion.alike:
        return f"it and {champion.name} were scored by different versions of the measures"
    return None


def _surely(one: Comparison) -> float:
    """What the difference is at most; of a single case nothing surer is known than its own."""
    at_most = one.mean if one.high is None else one.high
    assert at_most is not None
    return at_most


def _limit(limits: RegisterConfig, group: str) -> float:
    return {"liver": limits.liver_loss, "tumour": limits.tumour_loss}[group]


def _told(name: str, mean: float, found: Mapping[str, Comparison]) -> str:
    """The figures in a sentence."""
    cases = max(len(one.differences) for one in found.values())
    parts = []
    for group, one in found.items():
        interval = "" if one.low is None else f", {one.low:+.4f} to {one.high:+.4f}"
        parts.append(f"{group} {one.mean:+.4f}{interval}")
    if sure := [one.confidence for one in found.values() if one.low is not None]:
        parts.append(f"{100 * sure[0]:g} % intervals")
    figures = "; ".join(parts)
    on = counted(cases, "validation case")
    return f"mean Dice {mean:+.4f} against {name} on {on} ({figures})"
