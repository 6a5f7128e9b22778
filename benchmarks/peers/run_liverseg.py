"""Ours, under the same meter: one case from its files to its committed artifact."""

from collections.abc import Iterator
from pathlib import Path

from meter import meter

from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.cases.ingest import ingest_case
from liverseg_core.config import IngestConfig
from liverseg_core.sources.source import CaseSource, Member


def work(files: list[Path], folder: Path) -> Iterator[str]:
    """Ingest one case."""
    members = [Member(file, file.name, 0, file.stat().st_size, f"digest of {file}") for file in files]
    case = CaseSource("case", members[0], members[1] if members[1:] else None)
    ingest_case(case, IngestConfig(), LocalStore(folder))
    yield "ingest"


if __name__ == "__main__":
    meter(work, repeats=5)
