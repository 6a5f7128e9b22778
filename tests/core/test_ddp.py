"""Two training processes are one with the whole batch; a lost one ends the other, and the rerun goes on."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import torch

from liverseg_core.config import ComputeConfig
from liverseg_core.errors import ExitCode, Interrupted, LiversegError
from liverseg_core.models.model import load_model
from liverseg_core.training.train import CHECKPOINTS, HISTORY, TrainJob, train

pytestmark = pytest.mark.usefixtures("one_thread")
TWO = ComputeConfig(device="cpu", processes=2)
RECIPE: dict[str, Any] = {
    "network": {"channels": (4, 8), "norm": "instance"},  # batch norm would look at half a batch
    "optimiser": "sgd", "learning_rate": 0.02,  # Adam makes steps of rounding where there is no gradient
    "log_every": 1,
}  # fmt: skip


@pytest.fixture
def job_of(
    build: SimpleNamespace, stored_cases: list[Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., TrainJob]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def make(told: Mapping[str, Any] | None = None, **changes: Any) -> TrainJob:
        return build.train_job(stored_cases, told, **{**RECIPE, **changes})

    return make


def quiet(_step: int, _values: Mapping[str, float]) -> None:
    pass


def history(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / HISTORY).read_text().splitlines()]


def same(first: Path, second: Path) -> None:
    """Equal to rounding, which may move a voxel over a border: every logged value and all weights."""
    for mine, theirs in zip(history(first), history(second), strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert value == pytest.approx(theirs[name], rel=5e-3 if "dice" in name else 1e-5), name
    mine, theirs = (load_model(folder, "cpu").network.state_dict() for folder in (first, second))
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-4)


def folders(tmp_path: Path) -> tuple[Path, Path]:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    return one, two


def test_two_processes_are_one_with_the_whole_batch(
    job_of: Callable[..., TrainJob], stored_cases: list[Path], tmp_path: Path
) -> None:
    """Also Dice over the whole batch, whose sums cross processes, parts of a batch, and validation."""
    one, two = folders(tmp_path)
    told: list[str] = []
    hears = {
        "compute": TWO,
        "validation": stored_cases,
        "progress": lambda step, steps: told.append(f"{step}/{steps}"),
        "saved": lambda folder: told.append(folder.name),
    }
    changes: dict[str, Any] = {"batch_size": 4, "validate_every": 3, "ema": 0.5}
    facts = train(job_of(hears, **changes), two, quiet)
    train(job_of({"validation": stored_cases}, **changes), one, quiet)
    same(one, two)
    assert facts["steps"] == 6
    assert "validation_dice_liver" in facts
    assert told == ["1/6", "2/6", "3/6", CHECKPOINTS, "4/6", "5/6", "6/6", CHECKPOINTS]


@pytest.mark.whole
@pytest.mark.slow
def test_under_torchrun_and_in_parts(job_of: Callable[..., TrainJob], tmp_path: Path) -> None:
    one, two = folders(tmp_path)
    changes: dict[str, Any] = {"batch_size": 4, "batch_dice": False, "steps": 3}
    train(job_of(**changes), one, quiet)
    request = tmp_path / "job.json"
    request.write_text(json.dumps(job_of(accumulate=2, **changes).plain(two)))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [sys.executable, *command, "-m", "liverseg_core.training.train_worker", str(request)],
        capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert '{"facts": {"steps": 3' in ended.stderr
    same(one, two)


def test_a_killed_process_ends_the_other_and_the_rerun_goes_on(
    job_of: Callable[..., TrainJob], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one, two = folders(tmp_path)
    train(job_of({"compute": TWO}, schedule="constant"), one, quiet)
    capfd.readouterr()

    def kill(step: int, _steps: int) -> None:
        if step == 4:
            workers()[-1].kill()

    with pytest.raises(LiversegError) as caught:
        train(job_of({"compute": TWO, "progress": kill}, schedule="constant", steps=400), two, quiet)
    assert caught.value.code == "LS771"
    assert caught.value.exit_code == ExitCode.RESOURCES
    assert "was killed by SIGKILL" in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err
    assert not workers()
    (two / CHECKPOINTS / "step-000000003.pt").stat()
    for path in (two / CHECKPOINTS).glob("step-*.pt"):
        if path.name > "step-000000003.pt":
            path.unlink()
    assert train(job_of({"compute": TWO}, schedule="constant"), two, quiet)["resumed_from"] == [3]
    assert (two / HISTORY).read_bytes() == (one / HISTORY).read_bytes(), "two addends have one sum"
    assert (two / "model.safetensors").read_bytes() == (one / "model.safetensors").read_bytes()


def workers() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "liverseg_core.training.train_worker" in child.cmdline()]


def test_a_signal_stops_all_after_one_step(job_of: Callable[..., TrainJob], tmp_path: Path) -> None:
    def progress(step: int, _steps: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as caught:
        train(job_of({"compute": TWO, "progress": progress}, steps=4000), tmp_path, quiet)
    assert caught.value.exit_code == 143
    assert [*(tmp_path / CHECKPOINTS).glob("step-*.pt")]
    assert not workers()


@pytest.mark.whole
@pytest.mark.slow
def test_an_error_comes_through_once(
    job_of: Callable[..., TrainJob], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LiversegError, match="LS272: the loss is no longer a number"):
        train(job_of({"compute": TWO}, learning_rate=1e30, gradient_clip=None), tmp_path, quiet)
    assert "LS272" not in capfd.readouterr().err
