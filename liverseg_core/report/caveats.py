"""What is to be kept in mind of a model's volumes: by its settings, and by the labels that it learnt from."""

from collections.abc import Iterator

from liverseg_core.cases.data_report import CaseRow
from liverseg_core.models.caveats import caveats_of
from liverseg_core.report import svg
from liverseg_core.report.results import number
from liverseg_core.report.sources import ReportSources

SMALL = 0.02
"""Labels that as they are stored hold this share more or less than their own are worth a sentence."""


def volume_caveats(sources: ReportSources) -> list[str]:
    """Sentences for wherever the model's volumes are told."""
    trained = set(sources.training)
    rows = [row for row in sources.data if row.case in trained and row.liver_ml is not None]
    return [*caveats_of(sources.model), *_changed(rows)]


def _changed(rows: list[CaseRow]) -> Iterator[str]:
    """How much more or less than their own the stored labels hold, all together and by case."""
    pairs = {
        "liver with tumour": [(row.stored_liver_ml, row.liver_ml) for row in rows],
        "tumour": [(row.stored_tumour_ml, row.tumour_ml) for row in rows],
    }
    told = []
    for name, volumes in pairs.items():
        known = [(stored, own) for stored, own in volumes if stored is not None and own]
        if not known:
            continue
        whole = sum(stored for stored, _ in known) / sum(own for _, own in known) - 1
        if abs(whole) >= SMALL:
            each = sorted(stored / own - 1 for stored, own in known)
            ends = " to ".join(_percent(share) for share in dict.fromkeys((each[0], each[-1])))
            told.append(f"{_percent(whole)} {name} ({ends} by case)")
    if told:
        yield (
            f"As it was given them, its training labels ({svg.cases(len(rows))}) differ from the same labels "
            f"at their own spacing: {', '.join(told)}. Its volumes tend the same way."
        )


def _percent(share: float) -> str:
    return f"{number(100 * share, 0, sign=True)} %"
