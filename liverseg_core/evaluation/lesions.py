"""What became of lesions, counted by criterion and size so that cases add up, and how good the matches are.

Two criteria are counted. `iou_50`, the primary one, by which lesions are called found: a lesion is right when
its match (lesion_matching.py) has an IoU above 0.5. `iou_0`: it is right when it shares a voxel with any of
the other side. Precision, recall and F1 come of the sums. A size is the diameter of a ball of the lesion's
volume; recall goes by the size of the reference lesion, precision by that of the predicted one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SIZES: Mapping[str, float] = {"below_10_mm": 0.0, "from_10_to_20_mm": 10.0, "from_20_mm": 20.0}
"""Size classes by the diameter they begin at, as LiTS has them."""
CRITERIA = ("iou_50", "iou_0")
PRIMARY = CRITERIA[0]
"""By which a lesion is found: sharing any voxel says nothing of how well, and is only ever called touched."""


@dataclass(frozen=True)
class Detection:
    """Lesions of the reference, those of them detected, predicted lesions, and those of them correct."""

    reference: int = 0
    detected: int = 0
    prediction: int = 0
    correct: int = 0

    def __add__(self, other: "Detection") -> "Detection":
        return Detection(
            self.reference + other.reference,
            self.detected + other.detected,
            self.prediction + other.prediction,
            self.correct + other.correct,
        )

    @property
    def precision(self) -> float | None:
        """Right ones among the predicted; None where nothing is predicted."""
        return self.correct / self.prediction if self.prediction else None

    @property
    def recall(self) -> float | None:
        """Detected ones among the reference's; None where it has none."""
        return self.detected / self.reference if self.reference else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall; 0 where there are lesions and nothing is right.

        None without any lesion, and where what is right in a size class has its partners in another.
        """
        if not self.correct + self.detected:
            return 0.0 if self.reference + self.prediction else None
        if self.precision is None or self.recall is None:
            return None
        return 2 * self.precision * self.recall / (self.precision + self.recall)

    def record(self) -> dict[str, Any]:
        """Counts and rates as plain JSON values."""
        return {**asdict(self), "precision": self.precision, "recall": self.recall, "f1": self.f1}


@dataclass(frozen=True)
class Match:
    """A detected lesion, or several at once: how many on either side, and how well they agree."""

    predictions: int
    references: int
    dice: float
    rvd: float
    assd_mm: float | None
    """None also beyond the `MEASURED` largest matches of a case."""


MEASURED = 500
"""Of so many matches a case the surfaces are compared, largest first; a label with more is noise."""


def _nothing() -> dict[str, dict[str, Detection]]:
    return {criterion: {size: Detection() for size in SIZES} for criterion in CRITERIA}


@dataclass(frozen=True)
class Lesions:
    """What became of the lesions of a case or of a set: counts by criterion and size, and the matches."""

    counts: Mapping[str, Mapping[str, Detection]] = field(default_factory=_nothing)
    matches: tuple[Match, ...] = ()

    def __add__(self, other: "Lesions") -> "Lesions":
        counts = {
            criterion: {size: found + other.counts[criterion][size] for size, found in sizes.items()}
            for criterion, sizes in self.counts.items()
        }
        return Lesions(counts, self.matches + other.matches)

    def record(self) -> dict[str, Any]:
        """Plain JSON values: for each criterion counts and rates of all lesions and by size; the matches."""
        return {**self._rates(), "matches": [asdict(match) for match in self.matches]}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Lesions":
        """Read back what `record` gave."""
        counts = {
            criterion: {size: _detection(record[criterion][size]) for size in SIZES} for criterion in CRITERIA
        }
        return cls(counts, tuple(Match(**match) for match in record["matches"]))

    def summary(self) -> dict[str, Any]:
        """Plain JSON values: as `record`, with the matches' mean Dice, RVD and ASSD instead of each."""
        means = {
            name: _mean([getattr(match, name) for match in self.matches])
            for name in ("dice", "rvd", "assd_mm")
        }
        return {**self._rates(), "matched": {"n": len(self.matches), **means}}

    def _rates(self) -> dict[str, Any]:
        return {
            criterion: {
                "all": sum(sizes.values(), Detection()).record(),
                **{size: found.record() for size, found in sizes.items()},
            }
            for criterion, sizes in self.counts.items()
        }


def _detection(record: Mapping[str, Any]) -> Detection:
    return Detection(*(record[name] for name in ("reference", "detected", "prediction", "correct")))


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None
