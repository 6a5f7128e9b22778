"""A checkpoint goes on where kernel, order of memory and GPUs are others, as they are on another device."""

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from liverseg_core.config import ComputeConfig
from liverseg_core.training import optimisation, system_metrics
from liverseg_core.training import train as loop
from liverseg_core.training.checkpoint import random_state, restore_random_state, save_checkpoint
from liverseg_core.training.distributed_training import World
from liverseg_core.training.interruption import repeatable
from liverseg_core.training.losses import build_loss
from liverseg_core.training.train_job import TrainJob
from liverseg_core.training.training_state import State, begin

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
HALF, PATCH = 3, (16, 16, 8)
RECIPES: dict[str, dict[str, Any]] = {
    "adam": {"optimiser": "adam"},
    "adamw": {"optimiser": "adamw", "ema": 0.9},
    "sgd": {"optimiser": "sgd"},
    "fp16": {"optimiser": "adamw", "precision": "fp16"},
}


class Place(NamedTuple):
    """What a device brings with it: its optimiser's kernel and its order of memory."""

    fused: bool
    channels_last: bool


PLACES = [Place(*pair) for pair in itertools.product((False, True), repeat=2)]


def job_at(place: Place, make: Callable[..., TrainJob], recipe: str) -> TrainJob:
    compute = ComputeConfig(device="cpu", channels_last=place.channels_last)
    return make([], {"compute": compute}, patch_size=PATCH, **RECIPES[recipe])


def begin_at(place: Place, job: TrainJob, folder: Path) -> State:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimisation, "one_kernel", lambda _: place.fused)
        return begin(job, folder, CPU, first=True)


def go_on(state: State, job: TrainJob, steps: range) -> None:
    run, loss = loop._Run(job, Path(), lambda *_: None, World(CPU), []), build_loss(job.config)
    for step in steps:
        drawn = torch.Generator().manual_seed(step)
        label = torch.randint(0, 3, (2, *PATCH), dtype=torch.uint8, generator=drawn)
        image = label[:, None] - 1 + torch.randn(2, 1, *PATCH, generator=drawn)
        with repeatable(True):
            loop._step(run, state, state.network, loss, iter([(image, label)]))


def weights(state: State) -> torch.Tensor:
    both = (*state.network.parameters(), *state.chosen.parameters())
    return torch.cat([weight.detach().flatten().double() for weight in both])


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The distance between weights, of their length."""
    return float(torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected))


def undisturbed(here: Place, job: TrainJob, folder: Path) -> tuple[torch.Tensor, dict[str, Any]]:
    """Weights of a training that stays, and its scaler; its checkpoint at half is left, as of two GPUs."""
    state = begin_at(here, job, folder)
    go_on(state, job, range(HALF))
    checkpoint = state.checkpoint(job.data_key, state.totals)
    checkpoint.state["random"]["cuda"] = [torch.zeros(16, dtype=torch.uint8)] * 2
    save_checkpoint(folder, checkpoint)
    scaler = state.scaler.state_dict()
    go_on(state, job, range(HALF, 2 * HALF))
    return weights(state), scaler


@pytest.mark.parametrize("recipe", RECIPES)
def test_weights_are_those_of_a_training_that_never_moved(
    build: SimpleNamespace, tmp_path: Path, recipe: str
) -> None:
    for number, here in enumerate(PLACES):
        folder = tmp_path / str(number)
        expected, scaler = undisturbed(here, job_at(here, build.train_job, recipe), folder)
        for there in PLACES:
            job = job_at(there, build.train_job, recipe)
            state = begin_at(there, job, folder)
            assert state.resumed_from == [HALF]
            assert state.scaler.state_dict() == scaler
            assert {group["fused"] for group in state.optimiser.param_groups} == {there.fused}
            go_on(state, job, range(HALF, 2 * HALF))
            if here == there:
                assert torch.equal(weights(state), expected), here
            assert apart(weights(state), expected) < 2e-4, (here, there)


@pytest.mark.parametrize(
    ("saved", "device", "expected"),
    [
        (2, "cuda:0", [0]),
        (2, "cuda:1", [1]),
        (2, "cuda", [0]),
        (1, "cuda:1", [0]),
        (0, "cuda:0", []),
        (2, "cpu", []),
    ],
)
def test_a_gpu_goes_on_with_one_random_state_however_many_were_saved(
    monkeypatch: pytest.MonkeyPatch, saved: int, device: str, expected: list[int]
) -> None:
    given: list[tuple[int, torch.device]] = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, gpu: given.append((int(state), gpu)))
    state = {**random_state(CPU), "cuda": [torch.tensor(number) for number in range(saved)]}
    restore_random_state(state, torch.device(device))
    assert given == [(number, torch.device(device)) for number in expected]


def test_the_training_device_alone_is_asked_for_its_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_rng_state", str)
    assert random_state(torch.device("cuda:1"))["cuda"] == ["cuda:1"]


def test_a_gpu_that_does_not_tell_its_use_ends_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):  # as NVIDIA's: no RuntimeError
        pass

    def refuse(_device: torch.device) -> int:
        raise NVMLError("Not Supported")

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 2_000_000)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    found = system_metrics.memory(torch.device("cuda"))
    assert found["gpu_mb"] == 2
    assert "gpu_utilisation" not in found
