"""Training: killed and resumed ≡ uninterrupted, bit for bit; it learns; its settings mean what they say."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from liverseg_core.config import Settings, TrainConfig
from liverseg_core.errors import Interrupted, LiversegError
from liverseg_core.losses import one_hot
from liverseg_core.model import load_model
from liverseg_core.optimisation import learning_rate
from liverseg_core.train import CHECKPOINTS, HISTORY, TrainJob, train

MakeJob = Callable[..., TrainJob]
STEPS = 6
FILES = {"model.safetensors", "model.json", HISTORY}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def cases(stored_cases: list[Path]) -> list[Path]:
    return stored_cases


@pytest.fixture(scope="module")
def make_job(build: SimpleNamespace) -> MakeJob:
    return build.train_job


def digest(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def silent(_step: int, _values: Mapping[str, float]) -> None:
    pass


class Killed(BaseException):
    pass


def train_killed_after(job: TrainJob, folder: Path, step: int) -> None:
    def progress(now: int, _steps: int) -> None:
        if now == step:
            raise Killed

    with pytest.raises(Killed):
        train(
            TrainJob(job.cases, job.config, job.ingest, job.compute, job.data_key, progress), folder, silent
        )


@pytest.fixture(scope="module")
def whole(make_job: MakeJob, cases: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    facts = train(make_job(cases), folder, silent)
    assert facts["resumed_from"] == []
    return folder


def test_what_training_leaves(whole: Path) -> None:
    assert set(digest(whole)) == FILES
    lines = [json.loads(line) for line in (whole / HISTORY).read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert set(lines[0]) == {"step", "loss", "dice_liver", "dice_tumour", "learning_rate"}
    model = load_model(whole, "cpu")
    assert model.spec.patch_size == (16, 16, 8)
    assert model.spec.activation == "softmax"
    assert model.spec.data_key == "data"


@pytest.mark.parametrize("step", [1, 3, 4, 5])
def test_killed_and_resumed_is_the_same_to_the_bit(
    make_job: MakeJob, cases: list[Path], whole: Path, tmp_path: Path, step: int
) -> None:
    train_killed_after(make_job(cases), tmp_path, step)
    facts = train(make_job(cases), tmp_path, silent)
    assert facts["resumed_from"] == ([3] if step > 3 else [])
    assert digest(tmp_path) == digest(whole)


def test_killed_twice_between_log_lines(make_job: MakeJob, cases: list[Path], tmp_path: Path) -> None:
    """Sums since the last line are in the checkpoint: a line after a resume is what it would have been."""
    job = make_job(cases, log_every=4, checkpoint_every=1)
    folder, reference = tmp_path / "killed", tmp_path / "whole"
    for path in (folder, reference):
        path.mkdir()
    train_killed_after(job, folder, 2)
    train_killed_after(job, folder, 5)
    facts = train(job, folder, silent)
    train(job, reference, silent)
    assert facts["resumed_from"] == [1, 4]
    assert digest(folder) == digest(reference)


def test_killed_after_the_model_was_saved(
    make_job: MakeJob, cases: list[Path], whole: Path, tmp_path: Path
) -> None:
    for name, content in digest(whole).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / CHECKPOINTS).mkdir()
    facts = train(make_job(cases), tmp_path, silent)
    assert facts["steps"] == STEPS
    assert facts["resumed_from"] == [STEPS]
    assert digest(tmp_path) == digest(whole)


def test_damaged_checkpoint_falls_back(
    make_job: MakeJob, cases: list[Path], tmp_path: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job(cases, checkpoint_every=2)
    reference = tmp_path / "reference"
    reference.mkdir()
    train(job, reference, silent)
    folder = tmp_path / "damaged"
    folder.mkdir()
    train_killed_after(job, folder, 5)
    (folder / CHECKPOINTS / "step-000000004.pt").write_bytes(b"damaged")
    facts = train(job, folder, silent)
    assert facts["resumed_from"] == [2]
    assert "step-000000004.pt is damaged" in caplog.text
    assert digest(folder) == digest(reference)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_tells(
    make_job: MakeJob, cases: list[Path], whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    def progress(step: int, _steps: int) -> None:
        if step == 4:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    job = make_job(cases, checkpoint_every=100)
    stopping = TrainJob(job.cases, job.config, job.ingest, job.compute, job.data_key, progress)
    with pytest.raises(Interrupted, match="training stopped at step 4 of 6") as caught:
        train(stopping, tmp_path, silent)
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    assert train(job, tmp_path, silent)["resumed_from"] == [4]
    reference = digest(whole)
    assert digest(tmp_path) == reference


def test_trains_outside_the_main_thread(
    make_job: MakeJob, cases: list[Path], whole: Path, tmp_path: Path
) -> None:
    worker = threading.Thread(target=train, args=(make_job(cases), tmp_path, silent))
    worker.start()
    worker.join()
    assert digest(tmp_path) == digest(whole)


def test_real_kill_9(make_job: MakeJob, cases: list[Path], whole: Path, tmp_path: Path) -> None:
    script = f"""
import sys; sys.path[:0] = {sys.path!r}
import time; import torch; from pathlib import Path; torch.set_num_threads(1)
from liverseg_core.config import *; from liverseg_core.train import *
job = TrainJob([Path(p) for p in {[str(c) for c in cases]!r}],
    TrainConfig.model_validate_json({make_job(cases).config.model_dump_json()!r}),
    IngestConfig(), ComputeConfig(device="cpu"), "data",
    lambda step, steps: time.sleep(600 if step == 5 else 0))
train(job, Path({str(tmp_path)!r}), lambda step, values: None)
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 120
        while not any(tmp_path.glob(f"{CHECKPOINTS}/*.pt")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert train(make_job(cases), tmp_path, silent)["resumed_from"] == [3]
    assert digest(tmp_path) == digest(whole)


def test_log_is_told_means_and_rate(make_job: MakeJob, cases: list[Path], tmp_path: Path) -> None:
    told: dict[int, Mapping[str, float]] = {}
    facts = train(make_job(cases), tmp_path, lambda step, values: told.update({step: values}))
    assert list(told) == [2, 4, 6]
    assert told[6]["patches_per_s"] > 0
    assert facts["loss"] == told[6]["loss"]


@pytest.mark.parametrize("loss", ["dice_ce", "bce"])
def test_it_learns(make_job: MakeJob, cases: list[Path], tmp_path: Path, loss: str) -> None:
    job = make_job(
        cases, steps=200, log_every=10, checkpoint_every=500, learning_rate=2e-2, loss=loss, augment={}
    )
    facts = train(job, tmp_path, silent)
    assert facts["dice_liver"] > 0.8
    assert facts["dice_tumour"] > 0.5
    assert load_model(tmp_path, "cpu").spec.activation == {"dice_ce": "softmax", "bce": "sigmoid"}[loss]


def test_bf16_runs_and_checkpoints_hold_fp32(make_job: MakeJob, cases: list[Path], tmp_path: Path) -> None:
    train(make_job(cases, precision="bf16"), tmp_path, silent)
    model = load_model(tmp_path, "cpu")
    assert {value.dtype for value in model.network.parameters()} == {torch.float32}


def test_divergence_is_an_error(make_job: MakeJob, cases: list[Path], tmp_path: Path) -> None:
    with pytest.raises(LiversegError, match="LS272"):
        train(make_job(cases, learning_rate=1e30, gradient_clip=None), tmp_path, silent)


def test_learning_rate_warms_up_and_falls() -> None:
    config = TrainConfig(learning_rate=1.0, schedule="cosine", warmup=4, steps=100)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[50] == pytest.approx(0.5)
    assert rates[99] < 0.001
    assert all(np.diff(rates[5:]) < 0)
    constant = TrainConfig(learning_rate=1.0, schedule="constant", warmup=0)
    assert learning_rate(constant, 99) == 1.0


def test_one_hot_matches_the_definition() -> None:
    label = torch.randint(0, 3, (2, 4, 3, 2), dtype=torch.uint8)
    expected = torch.nn.functional.one_hot(label.long(), 3).movedim(-1, 1).float()
    assert torch.equal(one_hot(label), expected)
    assert math.isclose(float(one_hot(label).sum()), label.numel())


def test_shipped_recipes_are_what_they_say() -> None:
    folder = Path(__file__).parents[2] / "deployments" / "configs"
    recipes = {
        name: Settings.model_validate(yaml.safe_load((folder / f"{name}.yaml").read_text()))
        for name in ("phantom", "unet")
    }
    unet = recipes["unet"]
    assert unet.train.steps * unet.train.batch_size == 100 * 105 * 5
    assert (unet.split.validation, unet.ingest.spacing_mm, unet.ingest.shrink) == (26, None, 2)
    assert (unet.train.loss, unet.train.optimiser, unet.train.schedule) == ("bce", "adam", "constant")
    phantom = recipes["phantom"]
    assert phantom.train.precision == "fp32"  # bf16 pays only on some processors
    assert phantom.split.validation >= 6
