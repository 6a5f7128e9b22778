"""Shipped recipes: they load, say what their comments say, and train on the phantom at reduced size."""

from pathlib import Path

import pytest
import torch

from flows.settings import load_settings
from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.cases.ingest import ingest_case
from liverseg_core.config import ComputeConfig, IngestConfig, Settings
from liverseg_core.models.model import load_model
from liverseg_core.models.networks import build_network, check_patch_size
from liverseg_core.phantom.dataset import PhantomSpec, write_phantom_tar
from liverseg_core.sources.source import open_source
from liverseg_core.training.train import TrainJob, train

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPES = ("phantom", "unet", "ahnet", "resenc")
GPU_GB = 12


def load(name: str, *overrides: str) -> Settings:
    return load_settings(name, overrides, {})


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_load_and_can_be_overridden(name: str) -> None:
    train = load(name).train
    check_patch_size(train.network, train.patch_size, train.batch_size)
    changed = load(
        name, "train.steps=7", "train.network={name: unet, channels: [4, 8]}", "train.ema=0.5"
    ).train
    assert (changed.steps, changed.network.channels, changed.ema) == (7, (4, 8), 0.5)


def test_recipes_are_what_they_say() -> None:
    unet, ahnet, resenc, phantom = (load(name) for name in ("unet", "ahnet", "resenc", "phantom"))
    assert unet.train.steps * unet.train.batch_size == 100 * 105 * 5
    assert (unet.split.validation, unet.ingest.spacing_mm, unet.ingest.shrink) == (26, None, 2)
    assert (unet.train.loss, unet.train.optimiser, unet.train.learning_rate) == ("bce", "adam", 1e-4)
    assert (unet.train.patch_size, unet.train.class_mixture) == ((96, 96, 96), (0.2, 0.3, 0.5))
    assert (unet.train.queue_volume, unet.train.weight_decay) == ((256, 256, 200), 0)
    assert (unet.train.augment.scales, unet.train.augment.degrees) == (0.1, 10)
    assert ahnet.train.steps * ahnet.train.batch_size == 1250 * 104
    assert (ahnet.split.validation, ahnet.ingest.spacing_mm) == (27, (1, 1, 1))
    assert (ahnet.train.loss, ahnet.train.optimiser, ahnet.train.learning_rate) == ("dice", "adam", 1e-4)
    background, liver, tumour, foreground = ahnet.train.class_mixture
    assert background == liver + tumour + foreground
    assert (resenc.train.precision, resenc.train.schedule, resenc.train.loss) == ("bf16", "poly", "dice_ce")
    assert sum(resenc.train.class_mixture[:4]) == pytest.approx(1 / 3, abs=0.02)
    assert phantom.train.precision == "fp32"  # bf16 pays only on some processors
    assert phantom.split.validation >= 6


def test_ahnet_fits_a_gpu_of_12_gb() -> None:
    """What autograd keeps of a step, four copies of the weights (gradients and Adam), and the losses' own."""
    train = load("ahnet").train
    kept = 0

    def note(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network = build_network(train.network)
        logits = network(torch.empty(train.batch_size, 1, *train.patch_size))
    weights = sum(p.nbytes for p in network.parameters())
    assert (kept + 4 * weights + 8 * logits.nbytes) / 2**30 < 0.9 * GPU_GB


@pytest.fixture(scope="module")
def phantom_cases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three ingested phantom cases, coarse."""
    folder = tmp_path_factory.mktemp("phantom")
    tar = folder / "phantom.tar"
    write_phantom_tar(tar, PhantomSpec(cases=3, unlabelled=0, size=(64, 64, 48)))
    ingest = IngestConfig(spacing_mm=(6, 6, 6))
    return [ingest_case(case, ingest, LocalStore(folder)).path for case in open_source(str(tar)).cases]


SMALLER = {
    "phantom": ("train.network.channels=[8, 16, 32]", "train.patch_size=[32, 32, 32]", "train.steps=40"),
    "unet": ("train.network.channels=[8, 16, 32]", "train.patch_size=[32, 32, 32]", "train.steps=40",
             "train.learning_rate=5e-3"),
    "ahnet": ("train.network.blocks=[1, 1, 1, 1]", "train.patch_size=[32, 32, 32]", "train.steps=16",
              "train.learning_rate=5e-3"),
    "resenc": ("train.network.channels=[8, 16, 32]", "train.network.blocks=[1, 1, 1]",
               "train.patch_size=[32, 32, 32]", "train.steps=40", "train.warmup=0", "train.momentum=0.9",
               "train.ema=0.8", "train.precision=fp32", "train.learning_rate=0.05", "train.validate_every=40",
               "train.validate_cases=1"),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_learn_on_the_phantom_at_reduced_size(
    name: str, phantom_cases: list[Path], tmp_path: Path
) -> None:
    settings = load(name, *SMALLER[name], "train.log_every=4", "train.checkpoint_every=1000")
    told: list[float] = []
    training, validation = phantom_cases[:2], phantom_cases[2:]
    on_cpu = ComputeConfig(device="cpu")
    job = TrainJob(training, settings.train, settings.ingest, on_cpu, name, validation=validation)
    facts = train(job, tmp_path, lambda step, values: told.append(values.get("loss", float("nan"))))
    assert facts["loss"] < 0.85 * told[0], told
    assert facts["dice_liver"] > 0.2
    assert ("validation_dice_liver" in facts) == (name == "resenc")
    assert load_model(tmp_path, "cpu").spec.network == settings.train.network
