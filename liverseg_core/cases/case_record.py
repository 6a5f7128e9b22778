"""What decides a stored case, and what later stages need to know of it; imports nothing that reads voxels."""

from dataclasses import dataclass
from typing import Any

from liverseg_core.artifacts.artifact import Facts, Recipe
from liverseg_core.artifacts.stages import INGEST
from liverseg_core.config import IngestConfig
from liverseg_core.sources.source import CaseSource


@dataclass(frozen=True)
class CaseRecord:
    """What later stages need to know of a stored case."""

    case: str
    key: str
    labelled: bool
    tumour: bool
    flagged: bool
    content: str
    """Equal for two cases of equal voxels as stored, whatever their headers say (see scan_identity.py)."""


def record(key: str, facts: Facts) -> CaseRecord:
    """The record of a stored case."""
    fingerprint = facts["fingerprint"]
    return CaseRecord(
        case=facts["case"],
        key=key,
        labelled=facts["labelled"],
        tumour=fingerprint["voxels"][2] > 0,
        flagged=bool(facts["flags"]),
        content=facts["identity"]["voxels"],
    )


def case_recipe(case: CaseSource, config: IngestConfig) -> Recipe:
    """What decides a stored case: the scan's and label's content, a corrected header, the ingest section."""
    label = case.label.digest if case.label else None
    inputs: dict[str, Any] = {"case": case.case, "image": case.image.digest, "label": label}
    if case.spacing_mm:  # in this case's key alone
        inputs["spacing_mm"] = list(case.spacing_mm)
    if case.axes:
        inputs["axes"] = case.axes
    return Recipe(INGEST, config.canonical(), inputs)
