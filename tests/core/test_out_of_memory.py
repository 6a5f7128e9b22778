"""Out of memory, by a network that says so: coded, with a remedy that fits, and nothing else is lost."""

import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.cases.ingest import ingest_case
from liverseg_core.config import ComputeConfig, EvaluateConfig, IngestConfig, NetworkConfig
from liverseg_core.errors import LiversegError
from liverseg_core.evaluation.evaluate import evaluate
from liverseg_core.inference import inference, predict_scan
from liverseg_core.inference.wanted import Wanted
from liverseg_core.models.model import INFERENCE, Model, ModelSpec
from liverseg_core.models.networks import build_network
from liverseg_core.out_of_memory import is_out_of_memory, no_room_on_gpu, out_of_memory
from liverseg_core.runners import SerialRunner
from liverseg_core.training import training_state
from liverseg_core.training.distributed_training import World, lost_process
from liverseg_core.training.no_room import no_room
from liverseg_core.training.train import CHECKPOINTS, HISTORY, train

pytestmark = pytest.mark.usefixtures("one_thread")

GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand more")
MACHINE = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you"
)
KEEP = IngestConfig(spacing_mm=None)


class Full(nn.Module):
    """Softmax logits; runs out of memory in the calls that are named, or with more windows than fit."""

    def __init__(self, failing: tuple[int, ...] = (), most: int = 99, error: Exception = GPU) -> None:
        super().__init__()
        self.failing, self.most, self.error = failing, most, error
        self.sizes: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        if len(self.sizes) in self.failing or len(x) > self.most:
            raise self.error
        return torch.cat([-x, x, x - 1], 1)


def model_of(network: nn.Module, device: str = "cpu") -> Model:
    spec = ModelSpec(
        network=NetworkConfig(channels=(4, 8)),
        activation="softmax",
        patch_size=(24, 18, 16),
        window_hu=(-100, 200),
        ingest=KEEP,
        data_key="none",
    )
    return Model(network, spec, torch.device(device), EvaluateConfig(air_hu=None))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (GPU, True),
        (MemoryError(), True),
        (MACHINE, True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (OSError("out of memory"), False),
    ],
)
def test_what_torch_says_for_want_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_what_failed_is_let_go_of() -> None:
    """An error that is kept would keep its tensors, and the next scan would have no room either."""
    held: list[weakref.ref[torch.Tensor]] = []

    def work() -> None:
        tensor = torch.zeros(1)
        held.append(weakref.ref(tensor))
        raise GPU

    with pytest.raises(LiversegError, match="LS705") as caught, out_of_memory(no_room_on_gpu):
        work()
    assert held[0]() is None
    assert caught.value.__suppress_context__
    with pytest.raises(ValueError, match="other"), out_of_memory(no_room_on_gpu):
        raise ValueError("other")
    outcomes = [*SerialRunner().map(lambda _: work(), ["a"])]
    assert outcomes[0].error is not None
    assert held[1]() is None


@pytest.mark.parametrize(("device", "sizes"), [("meta", [4, 1, 1, 1, 1, 1]), ("cpu", [4])])
def test_windows_go_one_by_one_on_a_gpu_alone(device: str, sizes: list[int]) -> None:
    """A device that holds no values stands in for it; on a CPU one window alone has other last bits."""
    network = Full(most=1)
    model, windows = model_of(network, device), torch.zeros(4, 1, 8, 8, 8)
    found: Iterator[torch.Tensor] = inference.predicted(model, windows, model.inference)
    if device == "cpu":
        with pytest.raises(torch.OutOfMemoryError):
            next(found)
    else:
        assert [tuple(one.shape) for one in found] == [(3, 8, 8, 8)] * 4
        assert len([*inference.predicted(model, windows[:1], model.inference)]) == 1, "and it is remembered"
    assert network.sizes == sizes


def test_one_scan_of_a_batch(build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predict: each scan is one window here, and the second has no room."""
    image, _ = build.ball((24, 18, 16))
    wanted = []
    for name in "abc":
        path = tmp_path / f"{name}.nii"
        path.write_bytes(build.nifti(image, build.affine()))
        wanted.append(Wanted(path, tmp_path / "out" / f"{name}.nii.gz", True, True))
    (tmp_path / "out").mkdir()
    model = model_of(Full((2,)))
    monkeypatch.setattr(predict_scan, "_loaded", lambda *_: model)

    def work(one: Wanted) -> dict[str, Any]:
        return predict_scan.predict_scan(one, tmp_path, "cpu")

    outcomes = [*SerialRunner().map(work, wanted)]
    assert [outcome.error and outcome.error.code for outcome in outcomes] == [None, "LS705", None]
    assert "Tried to allocate 2.00 GiB.)" in str(outcomes[1].error)
    assert "and more" not in str(outcomes[1].error)
    written = sorted(path.name.partition(".")[0] for path in (tmp_path / "out").iterdir())
    kinds = ("", "_probabilities", "_uncertainty")
    assert written == [name + kind for name in "ac" for kind in kinds], "nothing of b, not even in part"
    monkeypatch.setattr(predict_scan, "_loaded", lambda *_: model_of(Full((1,), error=MACHINE)))
    with pytest.raises(LiversegError, match="LS703: too little memory for b"):
        work(wanted[1])


@pytest.mark.parametrize("tune", [False, True])
def test_one_case_of_an_evaluation(build: Any, tmp_path: Path, tune: bool) -> None:
    cases = {}
    for name in "abc":
        files = (build.nifti(data, build.affine()) for data in build.ball((24, 18, 16)))
        source = build.case(tmp_path / "files", *files, name)
        cases[name] = ingest_case(source, KEEP, LocalStore(tmp_path / "store")).path
    folder, config = tmp_path / "evaluation", EvaluateConfig(pictures=0, precision="fp32", tune=tune)
    folder.mkdir()

    def run(network: Full) -> dict[str, Any]:
        return evaluate(model_of(network), cases, config, folder, lambda _done, _total: None)

    with pytest.raises(LiversegError, match=r"LS705: no memory for 1 validation case of 3: b \(") as caught:
        run(Full((2,)))
    assert "evaluate.precision to fp16" in caught.value.remedy
    done = {path.name.partition(".")[0] for path in folder.glob("raw/*" if tune else "predictions/*")}
    assert done == {"a", "c"}
    assert not (folder / "metrics.json").exists()
    again = Full()
    assert len(run(again)["cases"]) == 3
    assert again.sizes == [1], "the others were kept"
    assert (folder / INFERENCE).exists()
    (folder / "cases" / "c.json").unlink()
    (folder / "predictions" / "c.nii.gz").unlink()
    (folder / "rules.json").unlink(missing_ok=True)
    with pytest.raises(LiversegError, match=r"LS703.*Set evaluate\.batch_size to 1"):
        run(Full((1,), error=MACHINE))


def test_a_served_model(build: Any, tmp_path: Path) -> None:
    import pandas as pd
    from mlflow.exceptions import MlflowException

    from tasks.registry.pyfunc import SegmentationModel

    path = tmp_path / "scan.nii"
    path.write_bytes(build.nifti(build.ball((24, 18, 16))[0], build.affine()))
    served, row = SegmentationModel(), pd.DataFrame([{"path": str(path)}])
    served.model = model_of(Full((1, 2)))
    with pytest.raises(MlflowException, match=r"^LS705: the GPU has too little memory"):
        served.predict(None, row)
    served.model = model_of(Full((1,), error=MACHINE))
    with pytest.raises(MlflowException, match=r"^LS703"):
        served.predict(None, row)
    assert served.predict(None, row).shape == (24, 18, 16)  # type: ignore[union-attr]


def test_training(
    build: Any, stored_cases: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint before it is left, and the same run goes on from there as if nothing had been."""

    def silent(_step: int, _values: Mapping[str, float]) -> None:
        pass

    class Failing(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network, self.calls = network, 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls == 5:
                raise GPU
            return self.network(x)  # type: ignore[no-any-return]

    monkeypatch.setattr(training_state, "build_network", lambda *known: Failing(build_network(*known)))
    job = build.train_job(stored_cases)
    with pytest.raises(LiversegError, match="LS704: the GPU has too little memory to train unet on 2 × 16"):
        train(job, tmp_path, silent)
    names = {path.name for path in (tmp_path / CHECKPOINTS).iterdir()}
    assert [name for name in names if name.endswith(".pt")] == ["step-000000003.pt"]
    assert {path.name for path in tmp_path.iterdir()} == {CHECKPOINTS, HISTORY}
    monkeypatch.setattr(Failing, "forward", lambda self, x: self.network(x))
    assert train(job, tmp_path, silent)["resumed_from"] == [3]


@pytest.mark.parametrize(
    ("changes", "processes", "remedies"),
    [
        (
            {"batch_size": 12},
            2,
            "train.accumulate to 2, or set train.precision to bf16, or lower train.batch",
        ),
        ({"batch_size": 12, "accumulate": 3}, 1, "train.accumulate to 4, or"),
        ({"batch_size": 2, "precision": "bf16"}, 2, "checkpoint; or lower train.patch_size"),
    ],
)
def test_the_remedy_fits_the_recipe(
    build: Any, changes: dict[str, Any], processes: int, remedies: str
) -> None:
    job = build.train_job([], **changes)
    told = no_room(job, World(torch.device("cuda"), size=processes), "said", machine=False)
    assert remedies in told.remedy
    assert "processes" not in told.remedy, "fewer would leave each GPU more"
    on_cpu = no_room(job, World(torch.device("cpu"), size=processes), "said", machine=True)
    assert "precision" not in on_cpu.remedy
    memory = no_room(job, World(torch.device("cuda")), "said", machine=True)
    assert "lower compute.loader_workers" in memory.remedy


def test_a_lost_process() -> None:
    assert "lower compute.processes or train.batch_size" in lost_process("it", "cpu").remedy
    assert "compute.processes" not in lost_process("it", "cuda").remedy


def test_one_gpu_is_not_for_several_processes() -> None:
    ComputeConfig(device="cuda:1")
    ComputeConfig(device="cuda", processes=2)
    with pytest.raises(ValueError, match="processes = 2: each takes a GPU"):
        ComputeConfig(device="cuda:1", processes=2)


def test_windows_one_by_one_are_the_same_volume() -> None:
    image = np.random.default_rng(0).integers(-100, 200, (60, 40, 20)).astype(np.int16)
    together, alone = Full(), Full(most=1)
    whole = inference.predict_probabilities(model_of(together), image)
    inference._ALONE.add(alone)
    assert np.array_equal(inference.predict_probabilities(model_of(alone), image), whole)
    assert max(together.sizes) > 1
