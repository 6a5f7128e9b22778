"""Sliding windows: an identity network stitched over patches returns the input; model folders are safe."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from liverseg_core.artifacts.artifact import Facts, Recipe
from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.artifacts.produce import produce
from liverseg_core.artifacts.stages import TRAIN
from liverseg_core.config import IngestConfig, NetworkConfig
from liverseg_core.errors import LiversegError
from liverseg_core.inference.inference import load_model, predict_probabilities
from liverseg_core.inference.postprocess import drop_small_lesions
from liverseg_core.models.model import SPEC, WEIGHTS, Model, ModelSpec, pick_device, save_model
from liverseg_core.models.networks import build_network

CPU = torch.device("cpu")


def make_spec(activation: Literal["softmax", "sigmoid"] = "softmax") -> ModelSpec:
    return ModelSpec(
        network=NetworkConfig(channels=(4, 8)),
        activation=activation,
        patch_size=(16, 12, 8),
        window_hu=(-1000, 1000),
        ingest=IngestConfig(),
        data_key="data",
    )


class Identity(nn.Module):
    """Logits whose sigmoid or softmax gives the normalised intensity back, as a share of (−1, 1)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        share = ((x + 1) / 2).clamp(1e-6, 1 - 1e-6)
        return torch.cat([torch.log1p(-share), torch.log(share), torch.full_like(x, -100)], 1)


@pytest.mark.parametrize(
    ("shape", "overlap"),
    [
        ((16, 12, 8), 0.25),
        ((40, 33, 21), 0.0),
        ((40, 33, 21), 0.25),
        ((40, 33, 21), 0.5),
        ((17, 12, 9), 0.95),
        ((5, 30, 3), 0.5),
    ],
)
def test_identity_comes_back(shape: tuple[int, int, int], overlap: float) -> None:
    image = np.random.default_rng(0).integers(-900, 900, shape).astype(np.int16)
    probabilities = predict_probabilities(Model(Identity(), make_spec(), CPU), image, overlap, 3)
    assert probabilities.shape == (3, *shape)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities[1] * 2000 - 1000, image, atol=0.05)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)


def test_a_cpu_predicts_two_or_three_windows_at_once() -> None:
    """However many it may, and never one of several alone: more would only take memory."""
    seen: list[int] = []

    class Counted(Identity):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(len(x))
            return super().forward(x)

    image = np.zeros((48, 24, 8), np.int16)  # five windows along x, three along y
    model = Model(Counted(), make_spec(), CPU)
    for batch_size, sizes in ((8, [2] * 6 + [3]), (3, [2] * 6 + [3]), (2, [1] + [2] * 7), (1, [1] * 15)):
        seen.clear()
        predict_probabilities(model, image, 0.5, batch_size)
        assert sorted(seen) == sizes


def test_sigmoid_for_models_trained_with_binary_cross_entropy() -> None:
    class Zero(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 3, *x.shape[2:])

    image = np.zeros((16, 12, 8), np.int16)
    halves = predict_probabilities(Model(Zero(), make_spec("sigmoid"), CPU), image)
    np.testing.assert_allclose(halves, 1 / 2, rtol=1e-6)
    thirds = predict_probabilities(Model(Zero(), make_spec(), CPU), image)
    np.testing.assert_allclose(thirds, 1 / 3, rtol=1e-6)


def test_model_folder_there_and_back(tmp_path: Path) -> None:
    network = build_network(make_spec().network, seed=3)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    save_model(tmp_path, network, make_spec())
    assert sorted(path.name for path in tmp_path.iterdir()) == [SPEC, WEIGHTS]
    model = load_model(tmp_path)
    assert model.spec == make_spec()
    assert not model.network.training
    for name, value in network.state_dict().items():
        assert torch.equal(model.network.state_dict()[name].cpu(), value)


def test_same_model_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_model(tmp_path / name, build_network(make_spec().network, seed=3), make_spec())
    for file in (SPEC, WEIGHTS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, second, other = (build_network(NetworkConfig(), seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


@pytest.mark.parametrize(
    ("file", "content", "code"),
    [
        (SPEC, None, "LS521"),
        (WEIGHTS, None, "LS521"),
        (SPEC, b"{", "LS522"),
        (SPEC, b'{"format": 2}', "LS522"),
        (WEIGHTS, b"", "LS522"),
        (WEIGHTS, b"\x80\x04pickle", "LS522"),
        (WEIGHTS, "truncated", "LS522"),
        (WEIGHTS, "another network", "LS522"),
    ],
)
def test_bad_model_folder(tmp_path: Path, file: str, content: bytes | str | None, code: str) -> None:
    save_model(tmp_path, build_network(make_spec().network), make_spec())
    path = tmp_path / file
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    elif content == "another network":
        (tmp_path / "other").mkdir()
        save_model(tmp_path / "other", build_network(NetworkConfig(channels=(4, 16))), make_spec())
        path.write_bytes((tmp_path / "other" / file).read_bytes())
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.unlink()
    with pytest.raises(LiversegError, match=code):
        load_model(tmp_path)


def test_unknown_device() -> None:
    assert pick_device("cpu") == CPU
    for name in ("cuda:99", "gpu"):
        with pytest.raises(LiversegError, match="LS271"):
            pick_device(name)


def test_small_lesions_become_liver() -> None:
    label = np.ones((12, 12, 12), np.uint8)
    label[1:3, 1:3, 1:3] = 2  # 8 voxels of 2 × 1 × 3 mm: 0.048 ml
    label[3, 3, 3] = 2  # touches it at a corner only, which does not join
    label[6:10, 6:10, 6:10] = 2  # 64 voxels: 0.384 ml
    spacing = (2.0, 1.0, 3.0)
    assert np.array_equal(drop_small_lesions(label, 0, spacing), label)
    one_gone = drop_small_lesions(label, 0.048, spacing)
    assert (one_gone == 2).sum() == 72
    assert one_gone[3, 3, 3] == 1
    two_gone = drop_small_lesions(label, 0.049, spacing)
    assert (two_gone == 2).sum() == 64
    assert (two_gone > 0).all()


def test_a_trained_model_with_a_flipped_bit_is_named(tmp_path: Path) -> None:
    """As an artifact it has a manifest; the weights alone would load as other weights."""
    spec = make_spec()

    def make(folder: Path) -> Facts:
        save_model(folder, build_network(spec.network), spec)
        return {}

    folder = produce(LocalStore(tmp_path), Recipe(TRAIN, {}, {}), make).path
    load_model(folder)
    weights = bytearray((folder / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (folder / WEIGHTS).write_bytes(weights)
    with pytest.raises(LiversegError, match=r"LS502.*model\.safetensors"):
        load_model(folder)
