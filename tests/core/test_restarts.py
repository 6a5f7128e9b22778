"""Training stopped anywhere and started again ends with the bits of one that nobody disturbed.

Five stops here, as many as LIVERSEG_STOPS says where it is set (25 go through every recipe at every place).
"""

import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from liverseg_core.durable import PART
from liverseg_core.errors import Interrupted
from liverseg_core.training import checkpoint, validation
from liverseg_core.training.train import CHECKPOINTS, HISTORY, TrainJob, train

pytestmark = pytest.mark.usefixtures("one_thread")
STOPS = int(os.environ.get("LIVERSEG_STOPS", "5"))
STEPS = 12
EVERY: dict[str, Any] = {
    "steps": STEPS, "checkpoint_every": 4, "log_every": 3, "validate_every": 4, "validate_cases": 2,
}  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "ema and sgd": {"ema": 0.9, "optimiser": "sgd", "schedule": "poly", "choose": "best"},
    "deep supervision, bf16": {
        "network": {"name": "resenc", "channels": (4, 8), "blocks": (1, 1), "norm": "instance"},
        "precision": "bf16", "ema": 0.5, "patience": 2,
    },
    "fp16 in parts": {"precision": "fp16", "accumulate": 2, "gradient_clip": 1.0, "warmup": 3},
    "per-patch dice": {"loss": "dice", "batch_dice": False, "optimiser": "adam", "choose": "best"},
}  # fmt: skip
PLACES = ("first step", "within an epoch", "end of an epoch", "validation", "saving")
# a Latin square: the first five stops already are every recipe and every place
MATRIX = [
    (list(RECIPES)[(row + column) % 5], PLACES[column])
    for row, column in itertools.product(range(5), range(5))
]


class Killed(BaseException):
    pass


def quiet(_step: int, _values: Mapping[str, float]) -> None:
    pass


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def job_of(build: SimpleNamespace, stored_cases: list[Path]) -> Callable[..., TrainJob]:
    def make(recipe: str, **told: Any) -> TrainJob:
        return build.train_job(stored_cases, {"validation": stored_cases, **told}, **EVERY, **RECIPES[recipe])

    return make


@pytest.fixture(scope="module")
def undisturbed(
    job_of: Callable[..., TrainJob], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, bytes]]:
    made: dict[str, dict[str, bytes]] = {}

    def of(recipe: str) -> dict[str, bytes]:
        if recipe not in made:
            folder = tmp_path_factory.mktemp("undisturbed")
            train(job_of(recipe), folder, quiet)
            made[recipe] = files(folder)
        return made[recipe]

    return of


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """Arrange to be killed at a place; returns what the job must be told for that."""

    def at_step(number: int) -> dict[str, Any]:
        def progress(step: int, _steps: int) -> None:
            if step == number:
                raise Killed

        return {"progress": progress}

    def in_validation() -> dict[str, Any]:
        calls: Iterator[int] = itertools.count(1)
        real = validation.predict_probabilities

        def predict(*arguments: Any) -> Any:
            if next(calls) == 4:  # the second case of the second validation
                raise Killed
            return real(*arguments)

        monkeypatch.setattr(validation, "predict_probabilities", predict)
        return {}

    def in_saving() -> dict[str, Any]:
        real = checkpoint.write_atomically

        def write(path: Path, data: bytes) -> None:
            if path.name == "step-000000008.pt":
                path.with_name(f".{path.name}.1{PART}").write_bytes(data[: len(data) // 2])
                raise Killed
            real(path, data)

        monkeypatch.setattr(checkpoint, "write_atomically", write)
        return {}

    places: dict[str, Callable[[], dict[str, Any]]] = {
        "first step": lambda: at_step(1),
        "within an epoch": lambda: at_step(7),
        "end of an epoch": lambda: at_step(STEPS),
        "validation": in_validation,
        "saving": in_saving,
    }
    return lambda place: places[place]()


@pytest.mark.parametrize(("recipe", "place"), MATRIX[:STOPS])
def test_stopped_and_resumed_is_the_same_to_the_bit(
    job_of: Callable[..., TrainJob],
    undisturbed: Callable[[str], dict[str, bytes]],
    stop_at: Callable[[str], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    recipe: str,
    place: str,
) -> None:
    expected = undisturbed(recipe)
    told = stop_at(place)
    with pytest.raises(Killed):
        train(job_of(recipe, **told), tmp_path, quiet)
    monkeypatch.undo()
    facts = train(job_of(recipe), tmp_path, quiet)
    assert facts["resumed_from"] == {
        "first step": [], "within an epoch": [4], "end of an epoch": [8], "validation": [8], "saving": [4],
    }[place]  # fmt: skip
    assert files(tmp_path) == expected


@pytest.mark.parametrize("moment", ["validation", "step"])
def test_a_signal_saves_also_in_the_middle_of_a_validation(
    job_of: Callable[..., TrainJob],
    undisturbed: Callable[[str], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    moment: str,
) -> None:
    """A preempted node has seconds: validation is left, and done again after the restart."""
    real, calls = validation.predict_probabilities, itertools.count(1)

    def predict(*arguments: Any) -> Any:
        if next(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    def progress(step: int, _steps: int) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    told = {}
    if moment == "validation":
        monkeypatch.setattr(validation, "predict_probabilities", predict)
    else:
        told["progress"] = progress
    with pytest.raises(Interrupted) as caught:
        train(job_of("ema and sgd", **told), tmp_path, quiet)
    assert caught.value.exit_code == 143
    lines = [json.loads(line) for line in (tmp_path / HISTORY).read_text().splitlines()]
    assert not any("validation_dice_liver" in line for line in lines)
    monkeypatch.undo()
    assert train(job_of("ema and sgd"), tmp_path, quiet)["resumed_from"] == [4]
    assert files(tmp_path) == undisturbed("ema and sgd")


def test_checkpoints_alone_are_enough_to_go_on(
    job_of: Callable[..., TrainJob], undisturbed: Callable[[str], dict[str, bytes]], tmp_path: Path
) -> None:
    """What a mirror is given after each save brings another machine to the same end."""
    copies: list[dict[str, bytes]] = []

    def saved(folder: Path) -> None:
        assert folder.name == CHECKPOINTS
        copies.append(files(folder))

    lost, elsewhere = tmp_path / "lost", tmp_path / "elsewhere"
    lost.mkdir()
    train(job_of("ema and sgd", saved=saved), lost, quiet)
    assert len(copies) == STEPS // 4
    (elsewhere / CHECKPOINTS).mkdir(parents=True)
    for name, content in copies[1].items():
        (elsewhere / CHECKPOINTS / name).write_bytes(content)
    assert set(copies[1]) == {"step-000000004.pt", "step-000000008.pt", "best.pt"}
    assert train(job_of("ema and sgd"), elsewhere, quiet)["resumed_from"] == [8]
    assert files(elsewhere) == undisturbed("ema and sgd")
