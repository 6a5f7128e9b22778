"""Devices: what is said where a GPU is missing, and what is done for one that is there."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flows import training
from flows.commands.health import _check_device
from liverseg_core.cases.store import open_case
from liverseg_core.config import ComputeConfig, Settings
from liverseg_core.errors import LiversegError
from liverseg_core.models import device
from liverseg_core.models.ahnet import AHNet
from liverseg_core.models.device import gpu_expected, pick_device
from liverseg_core.training import train as loop
from liverseg_core.training.distributed_training import World
from liverseg_core.training.losses import build_loss
from liverseg_core.training.patch_dataset import PatchDataset
from liverseg_core.training.patches import patch_stream
from liverseg_core.training.training_state import begin

META = torch.device("meta")
NONE = not torch.cuda.is_available()


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine of which nothing says that it has a GPU."""
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(device, "GPU_FILES", ())
    return monkeypatch


@pytest.mark.parametrize(
    ("environment", "files", "expected"),
    [
        ({}, (), False),
        ({}, (__file__,), True),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, (), True),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, (), False),
        ({"CUDA_VISIBLE_DEVICES": ""}, (__file__,), False),
        ({"CUDA_VISIBLE_DEVICES": "1"}, (__file__,), True),
    ],
)
def test_where_a_gpu_is_expected(
    bare: pytest.MonkeyPatch, environment: dict[str, str], files: tuple[str, ...], expected: bool
) -> None:
    for name, value in environment.items():
        bare.setenv(name, value)
    bare.setattr(device, "GPU_FILES", files)
    assert gpu_expected() is expected


@pytest.mark.skipif(not NONE, reason="there is a GPU")
def test_auto_says_when_it_takes_the_cpu_beside_a_gpu(
    bare: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device._warn_of_cpu.cache_clear()
    assert pick_device("auto").type == "cpu"
    assert not caplog.records
    assert _check_device(Settings()).startswith("cpu, ")
    bare.setattr(device, "GPU_FILES", (__file__,))
    assert [pick_device("auto").type for _ in range(2)] == ["cpu", "cpu"]
    (said,) = [record.getMessage() for record in caplog.records]
    assert "set compute.device=cuda to stop" in said
    with pytest.raises(
        LiversegError, match=r"LS271: compute\.device 'cuda' is not usable here \(.+driver 580"
    ):
        _check_device(Settings())
    assert _check_device(Settings(compute=ComputeConfig(device="cpu"))).startswith("cpu, ")


@pytest.mark.parametrize(
    ("name", "count", "remedy"),
    [
        ("cuda", 0, "or set compute.device to cpu to do without a GPU"),
        ("cuda:99", 0, "or set compute.device to cpu to do without a GPU"),
        ("cuda:99", 2, "Choose one of them, and no more compute.processes than there are GPUs"),
        ("gpu", 2, "Correct compute.device"),
    ],
)
def test_no_such_device(monkeypatch: pytest.MonkeyPatch, name: str, count: int, remedy: str) -> None:
    """Never `auto`, which would train on the CPU without a word."""
    if name == "cuda" and not NONE:
        pytest.skip("there is a GPU")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(LiversegError, match="LS271") as caught:
        pick_device(name)
    assert caught.value.remedy.endswith(remedy)


def test_a_full_gpu_is_told_from_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(LiversegError, match="LS705"):
        pick_device("cuda")


def test_memory_is_pinned_for_a_gpu_alone(
    stored_cases: list[Path], build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    dataset = PatchDataset([open_case(stored_cases[0])], build.train_job([]).config, 0)
    for name in ("cpu", "cuda"):
        stream: Any = patch_stream(dataset, range(1), 1, ComputeConfig(), torch.device(name))
        assert stream.pin_memory is (name == "cuda")


def test_labels_lie_as_logits_do(build: Any, tmp_path: Path) -> None:
    """x-fastest from the loader; a CPU leaves them so."""
    job = build.train_job([])
    seen: dict[str, tuple[int, ...]] = {}
    loss_of = build_loss(job.config)
    label = torch.zeros(2, 8, 16, 16, dtype=torch.uint8).permute(0, 3, 2, 1)
    for place in (META, torch.device("cpu")):
        state = begin(job, tmp_path, place, first=True)
        run = loop._Run(job, tmp_path, lambda *_: None, World(place), [])

        def watched(outputs: Any, y: torch.Tensor, name: str = place.type) -> torch.Tensor:
            seen[name] = y.stride()
            return loss_of(outputs, y)

        batch = torch.zeros(2, 1, 16, 16, 8), label
        loop._step(run, state, state.network, watched, iter([batch]))
    assert seen == {"meta": torch.empty(2, 16, 16, 8).stride(), "cpu": label.stride()}


@pytest.mark.parametrize(
    ("upsample", "apart"), [("transpose", True), ("nearest", True), ("trilinear", False)]
)
def test_ahnets_pooling_has_windows_apart(upsample: str, apart: bool) -> None:
    """What its gradient adds to a voxel is then one number, and needs no order (decision 27)."""
    with META:
        network = AHNet(3, (1, 1, 1, 1), 2, upsample)
    pools = [module for module in network.modules() if isinstance(module, nn.MaxPool3d)]
    assert len(pools) > 5
    alone = [
        step >= size
        for pool in pools
        for size, step in zip(*map(_three, (pool.kernel_size, pool.stride)), strict=True)
    ]
    assert all(alone) is apart


def _three(sizes: int | tuple[int, ...]) -> tuple[int, ...]:
    return (sizes,) * 3 if isinstance(sizes, int) else sizes


def test_a_training_that_is_handed_over_uses_the_device_of_its_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = Settings(compute=ComputeConfig(device="auto", processes=2, resident_mb=7))
    monkeypatch.delenv(training.DEVICE, raising=False)
    assert training._of_this_machine(asked) is asked
    monkeypatch.setenv(training.DEVICE, "cuda")
    here = training._of_this_machine(asked).compute
    assert here == ComputeConfig(device="cuda", processes=2, resident_mb=7)
    monkeypatch.setenv(training.DEVICE, "cuda:1")
    with pytest.raises(LiversegError, match="LS201"):
        training._of_this_machine(asked)
