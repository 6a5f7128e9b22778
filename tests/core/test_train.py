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

from liverseg_core.cases.store import open_case, read_volume
from liverseg_core.config import ComputeConfig, TrainConfig
from liverseg_core.errors import Interrupted, LiversegError
from liverseg_core.inference.inference import predict_probabilities
from liverseg_core.models.model import load_model
from liverseg_core.models.networks import build_network
from liverseg_core.training.checkpoint import load_latest
from liverseg_core.training.losses import one_hot
from liverseg_core.training.optimisation import learning_rate
from liverseg_core.training.train import CHECKPOINTS, HISTORY, TrainJob, train
from liverseg_core.training.validation import scores as validation_scores
from liverseg_core.training.validation import validate

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
from liverseg_core.config import *; from liverseg_core.training.train import *
job = TrainJob([Path(p) for p in {[str(c) for c in cases]!r}],
    TrainConfig.model_validate_json({make_job(cases).config.model_dump_json()!r}),
    IngestConfig(), ComputeConfig(device="cpu"), "data",
    lambda step, steps: time.sleep(600 if step == 5 else 0))
train(job, Path({str(tmp_path)!r}), lambda step, values: None)
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 600
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
    assert 0 <= told[6]["data_wait_s"] < 60
    assert told[6]["host_mb"] > 50
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


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_runs_and_models_hold_fp32(
    make_job: MakeJob, cases: list[Path], tmp_path: Path, precision: str, caplog: pytest.LogCaptureFixture
) -> None:
    train(make_job(cases, precision=precision), tmp_path, silent)
    model = load_model(tmp_path, "cpu")
    assert {value.dtype for value in model.network.parameters()} == {torch.float32}
    fast = "AVX512" in torch.backends.cpu.get_cpu_capability()
    assert (f"convolutions in {precision} take many times as long" in caplog.text) == (not fast)


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / HISTORY).read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_a_batch_in_parts_is_the_whole_batch(make_job: MakeJob, cases: list[Path], tmp_path: Path) -> None:
    """Where nothing looks at other patches of the batch: instance norm, each patch's own Dice."""
    for parts in (1, 2, 4):
        folder = tmp_path / str(parts)
        folder.mkdir()
        network = {"channels": (4, 8), "norm": "instance"}
        changes = {
            "network": network,
            "batch_dice": False,
            "batch_size": 4,
            "accumulate": parts,
            "log_every": 1,
        }
        train(make_job(cases, **changes), folder, silent)
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-5)
    assert losses(tmp_path / "4") == pytest.approx(losses(tmp_path / "1"), rel=1e-5)


def test_a_batch_that_does_not_divide_is_refused(
    make_job: MakeJob, cases: list[Path], tmp_path: Path
) -> None:
    job = make_job(cases, {"compute": ComputeConfig(processes=3)})
    with pytest.raises(LiversegError, match=r"LS275: train\.batch_size 2 is not for 3 processes"):
        train(job, tmp_path, silent)


def test_a_patch_that_does_not_fit_is_refused_before_anything_is_read(
    make_job: MakeJob, tmp_path: Path
) -> None:
    with pytest.raises(LiversegError, match=r"LS273: train.patch_size \(16, 16, 8\) does not fit ahnet"):
        train(make_job([tmp_path / "no case"], network={"name": "ahnet"}), tmp_path, silent)


VALIDATED = {"validate_every": 4, "validate_cases": 2, "log_every": 100, "checkpoint_every": 100}


def history(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / HISTORY).read_text().splitlines()]


def test_validation_is_logged_and_the_best_can_be_chosen(
    make_job: MakeJob, cases: list[Path], tmp_path: Path
) -> None:
    """A learning rate that ruins the weights late: the best and the last are different models."""
    told: list[tuple[int, Mapping[str, float]]] = []
    folders = {choose: tmp_path / choose for choose in ("best", "last")}
    for choose, folder in folders.items():
        folder.mkdir()
        ruin = {"learning_rate": 0.3, "schedule": "constant", "gradient_clip": None}
        job = make_job(cases, {"validation": cases}, steps=40, choose=choose, **ruin, **VALIDATED)
        facts = train(job, folder, lambda step, values: told.append((step, values)))
    scores = {
        line["step"]: (line["validation_dice_liver"] + line["validation_dice_tumour"]) / 2
        for line in history(folders["best"])
        if "validation_dice_liver" in line
    }
    assert list(scores) == [*range(4, 41, 4)]
    assert {"loss", "validation_dice_liver", "validation_dice_tumour"} <= set(facts)
    assert [step for step, values in told if "validation_dice_liver" in values] == [*scores, *scores]
    best = max(scores.values())
    for choose, folder in folders.items():
        sums = validate(load_model(folder, "cpu"), cases, [])
        found = sum(validation_scores(sums).values()) / 2
        assert found == pytest.approx(best if choose == "best" else scores[40]), choose
    assert best > scores[40]


def test_validation_sees_the_patient_as_inference_does(
    make_job: MakeJob, cases: list[Path], tmp_path: Path
) -> None:
    """Volumes are (x, y, z), x fastest, as everywhere; on disk they are the other way round."""
    model = load_model(trained(make_job, cases, tmp_path), "cpu")
    sums = validate(model, cases[:1], [])
    case = open_case(cases[0])
    assert case.label is not None
    predicted = predict_probabilities(model, read_volume(case.image)).argmax(0)
    actual = read_volume(case.label)
    assert len(set(actual.shape)) == 3, "or a turned volume would fit"
    for row, lowest in zip(sums.tolist(), (1, 2), strict=True):
        found, there = predicted >= lowest, actual >= lowest
        assert row == pytest.approx([2 * (found & there).sum() / (found.sum() + there.sum()), 1])


def trained(make_job: MakeJob, cases: list[Path], folder: Path) -> Path:
    train(make_job(cases, steps=4), folder, silent)
    return folder


def test_training_ends_early_when_nothing_gets_better(
    make_job: MakeJob, cases: list[Path], tmp_path: Path
) -> None:
    job = make_job(
        cases, {"validation": cases}, steps=80, learning_rate=1e-12, patience=2, optimiser="sgd", **VALIDATED
    )
    facts = train(job, tmp_path, silent)
    assert facts["steps"] == 12, "the first validation is the best, and two more are not better"
    assert train(job, tmp_path, silent)["resumed_from"] == [12]


def test_no_validation_cases_no_validation(make_job: MakeJob, cases: list[Path], tmp_path: Path) -> None:
    facts = train(make_job(cases, choose="best", **VALIDATED), tmp_path, silent)
    assert facts["steps"] == STEPS


def test_the_average_of_the_weights_becomes_the_model(
    make_job: MakeJob, cases: list[Path], whole: Path, tmp_path: Path
) -> None:
    """By hand: the same steps, the average followed from the checkpoints of every step."""
    kept: list[dict[str, torch.Tensor]] = []

    def saved(folder: Path) -> None:
        found = load_latest(folder, "data", pytest.fail)
        assert found is not None
        kept.append(found.state["network"])

    train(make_job(cases, {"saved": saved}, ema=0.15, checkpoint_every=1), tmp_path, silent)
    # decay is the least of 0.15 and (1 + step) / (10 + step), from the seed's weights on
    name = next(iter(kept[0]))
    average = build_network(make_job(cases).config.network, 0).state_dict()[name]
    for step, weights in enumerate(kept):
        decay = min(0.15, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weights[name]
    averaged = load_model(tmp_path, "cpu").network.state_dict()[name]
    torch.testing.assert_close(averaged, average)
    assert not torch.equal(averaged, kept[-1][name])
    plain = load_model(whole, "cpu").network.state_dict()[name]
    assert torch.equal(plain, kept[-1][name]), "the average changes nothing of what it follows"


def test_training_starts_from_another_models_weights(
    make_job: MakeJob, cases: list[Path], whole: Path, tmp_path: Path
) -> None:
    started = {"start_from": whole}
    train(make_job(cases, started, learning_rate=1e-12, optimiser="sgd"), tmp_path, silent)
    fresh, tuned = (load_model(folder, "cpu").network.state_dict() for folder in (whole, tmp_path))
    assert all(torch.allclose(tuned[n], v) for n, v in fresh.items() if "running" not in n and "num" not in n)


def test_another_network_cannot_be_started_from(
    make_job: MakeJob, cases: list[Path], whole: Path, tmp_path: Path
) -> None:
    job = make_job(cases, {"start_from": whole}, network={"channels": (4, 16), "norm": "batch"})
    with pytest.raises(LiversegError, match=r"LS274: .*another network \(its channels\).*\[4, 8\]"):
        train(job, tmp_path, silent)
    with pytest.raises(LiversegError, match="LS521"):
        train(make_job(cases, {"start_from": tmp_path / "none"}), tmp_path, silent)


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
    poly = TrainConfig(learning_rate=1.0, schedule="poly", warmup=0, steps=100)
    assert learning_rate(poly, 50) == pytest.approx(0.5**0.9)


def test_one_hot_matches_the_definition() -> None:
    label = torch.randint(0, 3, (2, 4, 3, 2), dtype=torch.uint8)
    expected = torch.nn.functional.one_hot(label.long(), 3).movedim(-1, 1).float()
    assert torch.equal(one_hot(label), expected)
    assert math.isclose(float(one_hot(label).sum()), label.numel())
