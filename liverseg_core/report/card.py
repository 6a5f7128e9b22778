"""The model card: what a model is, what it was trained on, what was measured and what was not."""

from collections.abc import Iterator

from liverseg_core.report.results import Results
from liverseg_core.report.sources import ReportSources


def model_card(sources: ReportSources, results: Results) -> str:
    """The card as Markdown; names are escaped, since they come from other people's files."""
    return "\n".join(_lines(sources, results)) + "\n"


def _lines(sources: ReportSources, results: Results) -> Iterator[str]:
    yield f"# {sources.title}"
