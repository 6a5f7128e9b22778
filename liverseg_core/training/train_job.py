"""What one training is told: a record, and the same as plain JSON for processes that share the work."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liverseg_core.config import ComputeConfig, IngestConfig, TrainConfig

Values = Mapping[str, float]


def _silent(*_: object) -> None:
    pass


@dataclass(frozen=True)
class TrainJob:
    """One training.

    Args:
        cases: Folders of labelled, ingested cases.
        config: The recipe.
        ingest: How the cases were made; the model remembers it, to prepare a scan the same way.
        compute: Where and how fast; changes no bit of the result on the same machine.
        data_key: Names the data in checkpoints and in the model.
        progress: Told (step, steps) after every step.
        saved: Told the folder of checkpoints after each that was saved; nothing changes in it meanwhile.
        validation: Folders of labelled cases to validate on with `validate_every`.
        start_from: A model folder whose weights training begins with.
    """

    cases: Sequence[Path]
    config: TrainConfig
    ingest: IngestConfig
    compute: ComputeConfig
    data_key: str
    progress: Callable[[int, int], None] = _silent
    saved: Callable[[Path], None] = _silent
    validation: Sequence[Path] = ()
    start_from: Path | None = None

    def plain(self, staging: Path) -> dict[str, Any]:
        """Everything but the callables, with the folder to write to."""
        return {
            "staging": str(staging),
            "cases": [str(path) for path in self.cases],
            "config": self.config.canonical(),
            "ingest": self.ingest.canonical(),
            "compute": self.compute.canonical(),
            "data_key": self.data_key,
            "validation": [str(path) for path in self.validation],
            "start_from": None if self.start_from is None else str(self.start_from),
        }


def from_plain(plain: Mapping[str, Any], **told: Any) -> tuple[TrainJob, Path]:
    """The job that `TrainJob.plain` wrote down, with these callables, and its folder."""
    start = plain["start_from"]
    job = TrainJob(
        cases=[Path(path) for path in plain["cases"]],
        config=TrainConfig.model_validate(plain["config"]),
        ingest=IngestConfig.model_validate(plain["ingest"]),
        compute=ComputeConfig.model_validate(plain["compute"]),
        data_key=plain["data_key"],
        validation=[Path(path) for path in plain["validation"]],
        start_from=None if start is None else Path(start),
        **told,
    )
    return job, Path(plain["staging"])
