"""A tracking store on SQLite, a tiny model, and registrations whose Dice one can choose."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tiny_model import tiny_spec, write_tiny_model

from liverseg_core.config import RegisterConfig
from liverseg_core.evaluation.measures import CaseScore, Overlap, summarise
from tasks.registry.promotion import Seen
from tasks.registry.publish import Registration
from tasks.registry.tracking import Tracking, connect, open_run

Register = Callable[..., Registration]


@pytest.fixture(scope="session")
def session_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Making the database takes a second or two: once."""
    return tmp_path_factory.mktemp("a störe")


@pytest.fixture
def store(session_store: Path, monkeypatch: pytest.MonkeyPatch) -> Tracking:
    """MLflow on SQLite in a folder; every test has registered models of its own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return connect(None, session_store, "liverseg")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that was never trained, as a model's folder."""
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder, tiny_spec(16, None, "d" * 32), seed=0)
    (folder / "checkpoint.bin").write_bytes(b"not for the registry")
    return folder


def score(case: str, dice: float, tumour: float) -> CaseScore:
    """A case of these Dice."""
    liver, lesions = (Overlap(1000, 1000, round(1000 * value)) for value in (dice, tumour))
    return CaseScore(case, (1, 1, 1), {"liver": liver, "liver_only": liver, "tumour": lesions})


@pytest.fixture
def registration(model: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Register:
    """Make a registration of the tiny model, by Dice of liver and tumour of each case."""

    def make(
        tracking: Tracking,
        key: str = "a",
        dice: Sequence[tuple[float, float]] = ((0.9, 0.9),),
        **changed: object,
    ) -> Registration:
        scores = [score(f"case_{number}", *values) for number, values in enumerate(dice)]
        folder = tmp_path / key
        for name in ("pictures", "predictions"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "pictures" / "worst.png").write_bytes(b"png")
        (folder / "predictions" / "case.nii.gz").write_bytes(b"voxels")
        (folder / "metrics.json").write_text(json.dumps({"cases": [one.record() for one in scores]}))
        name = request.node.name.partition("[")[0]
        fields = {
            "key": f"{name}-{key}",
            "run_id": open_run(tracking, f"{name}-{key}", name, {}, {}),
            "config": RegisterConfig(model=name),
            "model": model,
            "evaluation": folder,
            "summary": summarise(scores),
            "seen": Seen("v1", {one.case: f"scan {one.case}" for one in scores}, ["another scan"]),
            "data_key": "d" * 32,
            "tags": {"liverseg.recipe": "phantom", "liverseg.evaluation_key": f"evaluation {key}"},
        }
        return Registration(**(fields | changed))  # type: ignore[arg-type]

    return make
