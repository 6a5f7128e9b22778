"""What a report is made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liverseg_core.cases.data_report import CaseRow

WRITTEN = "written"
"""The provenance that says when the report was."""


INTERVALS = (
    "In brackets: 95 % bootstrap intervals, from the 2.5th to the 97.5th percentile of the means of cases "
    "drawn again."
)


def duration(seconds: float) -> str:
    """In the two largest units that say something.

    Example:
        >>> duration(4.4), duration(125), duration(90_061)
        ('4 s', '2 min 5 s', '1 d 1 h')
    """
    parts: list[str] = []
    left = max(1, round(seconds))
    for name, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        parts += [f"{count} {name}"] * (count > 0 or bool(parts))
    return " ".join(part for part in parts[:2] if not part.startswith("0 "))


@dataclass(frozen=True)
class Rival:
    """Another model's scores on the same cases."""

    name: str
    """`liverseg version 3`."""
    scores: Sequence[Mapping[str, Any]]
    """As `CaseScore.record`."""


@dataclass(frozen=True)
class ReportSources:
    """All that a report tells of one model; holds no voxels."""

    title: str
    """`liverseg version 4`, or the model's key where it is not registered."""
    dataset: str
    """The dataset's name, from its `dataset.json`; says whether it is a phantom."""
    phantom: bool
    """Whether the cases are made up, so that no figure stands for patients."""
    evaluation: Path
    """Folder of the evaluation: `metrics.json`, `predictions/`, `pictures/`."""
    model: Path
    """Folder of the model: `model.json`, `history.jsonl` where it was trained as one."""
    resumed_from: Sequence[int]
    """Steps that its training went on from after it had been stopped."""
    training: Sequence[str]
    """Names of the cases it was trained on."""
    validation: Mapping[str, Path]
    """The cases it was scored on → their folders in the store."""
    data: Sequence[CaseRow]
    """The data report's rows, unusable cases among them."""
    champion: Rival | None
    """Whom it was compared with to be promoted; None where there was none or its cases were others."""
    verdict: str
    """Why it is champion or is not; empty where it is not registered."""
    provenance: Mapping[str, str]
    """Name → value: when the report was `WRITTEN`; when, in what time and on what the model was trained and
    evaluated; keys, commits, libraries."""
    recipe: str
    """The settings as YAML."""
    links: Mapping[str, str]
    """Name → URL: the version and run in MLflow, the flow run in Prefect."""
