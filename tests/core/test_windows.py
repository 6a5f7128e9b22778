"""Windows lie where torchio's lie, weigh what MONAI's weigh, and add up to what MONAI adds up."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
import torchio as tio
from monai.data.utils import compute_importance_map
from monai.inferers import sliding_window_inference
from torch import nn

from liverseg_core.config import EvaluateConfig, IngestConfig, NetworkConfig
from liverseg_core.errors import LiversegError
from liverseg_core.inference.inference import predict_planes
from liverseg_core.inference.windows import rows, tile, window_weights
from liverseg_core.models.intensity import normalise
from liverseg_core.models.model import Model, ModelSpec
from liverseg_core.models.networks import build_network

SIZE = (16, 16, 8)
WINDOW_HU = (-200.0, 300.0)


def make_model(network: nn.Module | None = None) -> Model:
    config = NetworkConfig(channels=(4, 8))
    spec = ModelSpec(
        network=config,
        activation="softmax",
        patch_size=SIZE,
        window_hu=WINDOW_HU,
        ingest=IngestConfig(),
        data_key="data",
    )
    return Model((network or build_network(config, seed=1)).eval(), spec, torch.device("cpu"))


def predict(model: Model, image: np.ndarray, **settings: Any) -> np.ndarray:
    """All planes of a prediction as (c, x, y, z)."""
    planes = list(predict_planes(model, image, EvaluateConfig(**{"air_hu": None, **settings})))
    return np.stack(planes, axis=1).transpose(0, 3, 2, 1)


def noise(*shape: int) -> np.ndarray:
    return np.asfortranarray(np.random.default_rng(0).normal(50, 150, shape).astype(np.int16))


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.6, 0.9])
@pytest.mark.parametrize("shape", [(16, 16, 8), (17, 40, 21), (33, 16, 64)])
def test_windows_lie_where_torchio_lays_them(shape: tuple[int, int, int], overlap: float) -> None:
    tiling = tile(shape, SIZE, overlap)
    shared = [min(2 * round(overlap * n / 2), 2 * ((n - 1) // 2)) for n in SIZE]
    subject = tio.Subject(image=tio.ScalarImage(tensor=torch.zeros(1, *shape)))
    sampler = tio.GridSampler(subject, SIZE, shared)
    ours = {(x, y, z) for x, y in tiling.row for z in tiling.starts[2]}
    assert ours == {tuple(location[:3]) for location in sampler.locations.tolist()}
    assert sum(done for _, done in rows(tiling.starts[2], shape[2])) == shape[2]


def test_weights_are_what_the_field_has() -> None:
    """MONAI's Gaussian with sigma 1/8 of the window, and torchio's Hann."""
    gaussian = compute_importance_map(SIZE, "gaussian", 0.125).numpy()
    np.testing.assert_allclose(window_weights(SIZE, "gaussian"), gaussian, rtol=1e-5)
    hann = tio.GridAggregator._get_hann_window(SIZE).numpy()
    np.testing.assert_allclose(window_weights(SIZE, "hann"), hann, rtol=1e-5)
    assert np.all(window_weights(SIZE, "constant") == 1)


@pytest.mark.parametrize("weights", ["gaussian", "constant"])
@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_the_same_as_monai(weights: Literal["gaussian", "constant"], overlap: float) -> None:
    model, image = make_model(), noise(40, 33, 29)
    ours = predict(model, image, weights=weights, overlap=overlap, batch_size=3)
    with torch.inference_mode():
        theirs = sliding_window_inference(
            torch.from_numpy(normalise(image, WINDOW_HU))[None, None],
            SIZE,
            3,
            lambda window: model.network(window).softmax(1),
            overlap=overlap,
            mode=weights,
            sigma_scale=0.125,
        )[0].numpy()
    assert ours[1].std() > 0.01
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_batches_change_nothing() -> None:
    model, image = make_model(), noise(40, 33, 29)
    one, many = (predict(model, image, batch_size=size) for size in (1, 5))
    np.testing.assert_allclose(one, many, atol=1e-6)


def test_mirrored_windows_make_a_mirrored_scan_the_same() -> None:
    """The mean over both ways is the same for a scan and its mirror image, where windows lie alike."""
    model, image = make_model(), noise(28, 16, 8)
    plain = predict(model, image)
    assert np.abs(plain - predict(model, image[::-1].copy(order="F"))[:, ::-1]).max() > 1e-3
    both = predict(model, image, mirror=("x", "y"))
    np.testing.assert_allclose(
        both, predict(model, image[::-1].copy(order="F"), mirror=("y", "x"))[:, ::-1], atol=1e-6
    )
    assert np.abs(both - plain).max() > 1e-3


def test_outputs_that_are_no_numbers_are_named() -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), 3, *x.shape[2:]), torch.nan)

    with pytest.raises(LiversegError, match="LS524"):
        predict(make_model(Broken()), noise(16, 16, 8))


def test_planes_come_before_the_scan_is_through() -> None:
    """The first planes are there after the first rows: nothing waits for the whole."""
    calls: list[int] = []

    class Counting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return torch.zeros(len(x), 3, *x.shape[2:])

    planes = predict_planes(make_model(Counting()), noise(16, 16, 80), EvaluateConfig(overlap=0))
    next(planes)
    assert len(calls) == 1
    assert len(list(planes)) == 79
    assert len(calls) == 10
