"""Augmentation against torchio and scipy: the same voxels for a draw, the same draws, on any device."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchio as tio
from scipy.ndimage import gaussian_filter
from scipy.stats import ks_2samp, kstest

from liverseg_core.config import AugmentConfig, TrainConfig
from liverseg_core.models.intensity import normalise
from liverseg_core.training.augment import Draw, change_intensities, draw, pull_matrix
from liverseg_core.training.device_augment import augment_batch
from liverseg_core.training.patch_dataset import Cut
from liverseg_core.training.warp import Plan, is_flip, margin
from liverseg_core.training.warp import warp as warp_into

SIZE = (20, 24, 16)
WINDOW = (-200.0, 300.0)
OBLIQUE = np.array([[1.0, 0.2, 0, -30], [-0.2, 1.1, 0.1, 12], [0, -0.1, 2.5, 80], [0, 0, 0, 1]])
NOTHING = Draw(np.eye(3), 1, 1, 1, (0, 0, 0), 1, 0, 0)


def changed(**values: object) -> Draw:
    return Draw(**(NOTHING.__dict__ | values))  # type: ignore[arg-type]


def boxes(matrix: np.ndarray, size: tuple[int, int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """An image and a label, (z, y, x), as large as the draw needs: smooth, and clipped in places."""
    shape = np.add(size, np.multiply(2, margin(matrix, size)))
    x, y, z = np.indices(shape) / 3.0
    image = 250 * np.sin(x + 0.5 * z) + 200 * np.cos(y) + 50
    label = (image > 100).astype(np.uint8) + (image > 300)
    return np.rint(image).astype(np.int16).T.copy(), label.T.copy()


def warp(
    image: np.ndarray, label: np.ndarray, matrix: np.ndarray, size: tuple[int, int, int], plan: Plan
) -> tuple[np.ndarray, np.ndarray]:
    out = np.empty(size[::-1], np.float32), np.empty(size[::-1], np.uint8)
    warp_into((image, label), matrix, plan, out)
    return out


def some_matrix(seed: int = 0, affine: np.ndarray = OBLIQUE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return pull_matrix(rng.uniform(0.8, 1.2, 3), rng.uniform(-20, 20, 3), affine)


@pytest.mark.parametrize(
    "affine", [np.eye(4), np.diag([-1.0, 1, 2, 1]), OBLIQUE], ids=["1mm", "flip", "oblique"]
)
@pytest.mark.parametrize("seed", range(3))
def test_same_voxels_as_torchio(affine: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scales, degrees = rng.uniform(0.9, 1.1, 3), rng.uniform(-10, 10, 3)
    matrix = pull_matrix(scales, degrees, affine)
    image, label = boxes(matrix)
    subject = tio.Subject(
        image=tio.ScalarImage(tensor=torch.from_numpy(normalise(image.T, WINDOW)[None]), affine=affine),
        label=tio.LabelMap(tensor=torch.from_numpy(label.T[None]), affine=affine),
    )
    theirs = tio.Affine(scales.tolist(), degrees.tolist(), (0, 0, 0))(subject)
    inside = tuple(slice(m, m + n) for m, n in zip(margin(matrix, SIZE), SIZE, strict=True))
    patch, classes = warp(image, label, matrix, SIZE, Plan(WINDOW, vote=False))
    np.testing.assert_allclose(patch.T, theirs["image"].numpy()[0][inside], atol=2e-4)
    assert (theirs["label"].numpy()[0][inside] == classes.T).mean() > 0.998  # a rounding tie here and there


def test_same_distribution_as_torchio() -> None:
    """Of each entry of the matrix, over scales and angles; and with torchio's chance of nothing at all."""
    config, rng = AugmentConfig(affine_probability=1), np.random.default_rng(0)
    ours = np.array([draw(config, OBLIQUE, rng).matrix for _ in range(600)])
    ranges = (0.9, 1.1) * 3, (-10, 10) * 3, (0, 0) * 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [tio.RandomAffine.get_params(*ranges, isotropic=False) for _ in range(600)]
    theirs = np.array([pull_matrix(scales.numpy(), turns.numpy(), OBLIQUE) for scales, turns, _ in drawn])
    for row, column in np.ndindex(3, 3):
        assert ks_2samp(ours[:, row, column], theirs[:, row, column]).pvalue > 0.001


def test_each_transform_comes_as_often_as_it_should() -> None:
    names = ("affine", "flip", "gamma", "brightness", "contrast", "blur", "low_resolution", "noise")
    wanted = dict(zip(names, np.linspace(0.1, 0.8, len(names)), strict=True))
    config = AugmentConfig(**{f"{name}_probability": share for name, share in wanted.items()})
    rng = np.random.default_rng(0)
    draws = [draw(config, np.eye(4), rng) for _ in range(2000)]
    found = {
        "affine": [not is_flip(drawn.matrix) for drawn in draws],
        "flip": [drawn.matrix[0, 0] < 0 for drawn in draws],
        "gamma": [drawn.gamma != 1 for drawn in draws],
        "brightness": [drawn.brightness != 1 for drawn in draws],
        "contrast": [drawn.contrast != 1 for drawn in draws],
        "blur": [drawn.blur != (0, 0, 0) for drawn in draws],
        "low_resolution": [drawn.zoom != 1 for drawn in draws],
        "noise": [drawn.noise_std != 0 for drawn in draws],
    }
    for name, share in wanted.items():
        assert np.mean(found[name]) == pytest.approx(share, abs=0.04), name
    gammas = np.log([drawn.gamma for drawn in draws if drawn.gamma != 1])
    assert kstest(gammas, "uniform", (-0.3, 0.6)).pvalue > 0.001
    noises = [drawn.noise_std for drawn in draws if drawn.noise_std]
    assert kstest(noises, "uniform", (0, 0.1)).pvalue > 0.001


def test_one_transform_moves_no_other() -> None:
    """Seeing what one transform does means leaving all else alone."""
    without, with_ = (
        draw(AugmentConfig(affine_probability=1, blur_probability=p), OBLIQUE, np.random.default_rng(3))
        for p in (0, 1)
    )
    np.testing.assert_array_equal(without.matrix, with_.matrix)
    assert (without.seed, without.blur) == (with_.seed, (0, 0, 0))
    assert 0.5 <= min(with_.blur) <= max(with_.blur) <= 1


def test_equal_votes_go_to_the_higher_class() -> None:
    """A label of two halves, sampled halfway between them."""
    label = np.zeros((8, 8, 8), np.uint8)
    label[:, :, 4:] = 2
    halfway = np.diag([1.5, 1, 1])  # two voxels 1.5 apart: at 2.75 and 4.25; then 3.5, between 3 and 4
    _, found = warp(np.zeros((8, 8, 8), np.int16), label, halfway, (3, 2, 2), Plan(WINDOW, vote=True))
    assert found.T[:, 0, 0].tolist() == [0, 2, 2]


@pytest.mark.parametrize("degrees", [0.0, 10.0, 40.0])
def test_margin_holds_all_that_a_patch_asks_for_and_little_more(degrees: float) -> None:
    rng = np.random.default_rng(0)
    half = (np.array(SIZE) - 1) / 2
    corners = np.stack(np.meshgrid(*([-1, 1],) * 3)).reshape(3, -1) * half[:, None]
    for _ in range(50):
        matrix = pull_matrix(rng.uniform(0.7, 1.3, 3), rng.uniform(-degrees, degrees, 3), OBLIQUE)
        reach = np.abs(matrix @ corners).max(axis=1) - half
        slack = np.array(margin(matrix, SIZE)) - np.maximum(reach, 0)
        assert slack.min() >= 1 - 1e-5
        assert slack.max() < 2
    assert margin(np.diag([1.0, -1, 1]), SIZE) == (0, 0, 0)


def test_window() -> None:
    image = np.array([-1024, -200, 50, 300, 3000], np.int16)[:, None, None]
    np.testing.assert_allclose(normalise(image, WINDOW).ravel(), [-1, -1, 0, 1, 1], atol=1e-6)
    patch, _ = warp(image, image.astype(np.uint8), np.eye(3), (1, 1, 5), Plan(WINDOW, vote=False))
    np.testing.assert_array_equal(patch, normalise(image, WINDOW))


@pytest.fixture
def patch() -> torch.Tensor:
    return torch.rand((9, 20, 31), generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_gamma_is_torchio_s(patch: torch.Tensor) -> None:
    image = tio.ScalarImage(tensor=(patch[None] + 1) / 2)
    expected = tio.Gamma(1.3)(image).data[0] * 2 - 1
    torch.testing.assert_close(change_intensities(patch, changed(gamma=1.3)), expected, atol=1e-5, rtol=0)


def test_blur_is_scipy_s(patch: torch.Tensor) -> None:
    expected = gaussian_filter(patch.numpy(), (1.0, 0.6, 0.8))  # (z, y, x)
    found = change_intensities(patch, changed(blur=(0.8, 0.6, 1.0)))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_brightness_and_contrast(patch: torch.Tensor) -> None:
    low, high, mean = patch.min(), patch.max(), patch.mean()
    bright = change_intensities(patch.clone(), changed(brightness=1.2))
    torch.testing.assert_close(bright, patch * 1.2)
    flat = change_intensities(patch.clone(), changed(contrast=0.8))
    torch.testing.assert_close(flat.std(), patch.std() * 0.8)
    torch.testing.assert_close(flat.mean(), mean, atol=1e-6, rtol=0)
    steep = change_intensities(patch.clone(), changed(contrast=1.2))
    assert (steep.min(), steep.max()) == (low, high)


def test_low_resolution_loses_detail_alone() -> None:
    ramp = torch.linspace(-1, 1, 40).expand(30, 20, 40)
    found = change_intensities(ramp.clone(), changed(zoom=0.5))
    assert (found - ramp)[:, :, 2:-2].abs().max() < 0.06
    noise = torch.randn((30, 20, 40), generator=torch.Generator().manual_seed(0))
    assert change_intensities(noise.clone(), changed(zoom=0.5)).std() < 0.7


def test_noise_is_normal_and_seeded(patch: torch.Tensor) -> None:
    one, again, other = (
        change_intensities(patch.clone(), changed(noise_std=0.07, seed=seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert kstest((one - patch).numpy().ravel(), "norm", (0, 0.07)).pvalue > 0.001


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))],
)
@pytest.mark.parametrize("how", ["nearest", "vote"])
def test_a_device_makes_the_same_patches(device: str, how: str) -> None:
    matrices: list[np.ndarray] = [some_matrix(1), some_matrix(2) * (-1, 1, 1), np.diag([1.0, -1, -1])]
    draws = [changed(matrix=m, gamma=1.1, contrast=0.9, blur=(0.7, 0.6, 0.5), zoom=0.8) for m in matrices]
    cuts = [Cut(*map(torch.from_numpy, boxes(drawn.matrix)), drawn) for drawn in draws]
    augment = AugmentConfig.model_validate({"label_interpolation": how})
    config = TrainConfig(patch_size=SIZE, augment=augment, window_hu=WINDOW)
    images, labels = augment_batch(cuts, config, torch.device(device))
    assert images.shape == (3, 1, *SIZE)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.uint8)
    for cut, image, label in zip(cuts, images.cpu(), labels.cpu(), strict=True):
        plan = Plan(WINDOW, how == "vote")
        patch, classes = warp(cut.image.numpy(), cut.label.numpy(), cut.draw.matrix, SIZE, plan)
        expected = change_intensities(torch.from_numpy(patch), cut.draw).numpy().T
        np.testing.assert_allclose(image[0].numpy(), expected, atol=1e-3)
        assert (label.numpy() == classes.T).mean() > 0.998


@pytest.mark.parametrize("on", ["patch", "batch"])
def test_a_constant_volume_stays_constant(on: str) -> None:
    """No filled corner reaches the patch, however it is turned."""
    for seed in range(5):
        matrix = some_matrix(seed)
        image, label = (np.full_like(box, 1) for box in boxes(matrix))
        image[:] = 50
        make: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
            "patch": lambda: warp(image, label, matrix, SIZE, Plan(WINDOW, vote=True)),  # noqa: B023
            "batch": lambda: augment_batch(  # type: ignore[return-value]
                [Cut(torch.from_numpy(image), torch.from_numpy(label), changed(matrix=matrix))],  # noqa: B023
                TrainConfig(patch_size=SIZE),
                torch.device("cpu"),
            ),
        }
        patch, classes = make[on]()
        assert float(abs(patch).max()) < 1e-5
        assert int(classes.min()) == 1
