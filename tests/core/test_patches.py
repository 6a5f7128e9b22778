"""The patch stream: what sample n is, that it alone decides, and that patches are the volume's own voxels."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchio as tio
import zarr
from scipy.stats import chi2_contingency

from liverseg_core.augment import draw_affine, margin
from liverseg_core.config import AugmentConfig, ComputeConfig, TrainConfig
from liverseg_core.errors import LiversegError
from liverseg_core.geometry import Grid
from liverseg_core.patches import PatchDataset, normalise, patch_stream
from liverseg_core.store import Case

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
SIZE = (16, 16, 8)


def make_case(name: str, label: np.ndarray, image: np.ndarray | None = None) -> Case:
    image = np.full(label.shape, 50, np.int16) if image is None else image
    positions = {c: np.argwhere(label == c).astype(np.int32) for c in range(3)}
    return Case(name, zarr.array(image.T), zarr.array(label.T), Grid(label.shape, AFFINE), positions, {})


def anatomy(shape: tuple[int, int, int] = (40, 36, 20), tumour: bool = True) -> np.ndarray:
    label = np.zeros(shape, np.uint8)
    label[8:30, 6:28, 4:16] = 1
    if tumour:
        label[8:13, 6:11, 4:8] = 2
    return label


def config(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"patch_size": SIZE, "batch_size": 2, "steps": 10, **changes})


def world_image(shape: tuple[int, int, int]) -> np.ndarray:
    """Every voxel tells where it is."""
    x, y, z = np.indices(shape)
    return np.asarray(x + 40 * y + 1600 * z, np.int16)


def test_sample_number_decides_alone() -> None:
    cases = [make_case("a", anatomy()), make_case("b", anatomy(tumour=False))]
    augment = AugmentConfig(affine_probability=0.5, noise_probability=1, gamma_probability=1)
    first, second = (PatchDataset(cases, config(augment=augment), resident_mb=mb) for mb in (0, 100))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    forward = {n: first[n] for n in range(8)}
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    for n in reversed(range(8)):
        for one, other in zip(forward[n], second[n], strict=True):
            assert torch.equal(one, other)
    assert not torch.equal(forward[0][0], forward[1][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_stream_starts_anywhere(workers: int) -> None:
    dataset = PatchDataset([make_case("a", anatomy(), world_image((40, 36, 20)))], config())
    whole = list(patch_stream(dataset, range(6), 2, ComputeConfig()))
    tail = list(patch_stream(dataset, range(4, 6), 2, ComputeConfig(loader_workers=workers)))
    assert len(whole) == 6
    for one, other in zip(whole[4:], tail, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_batches_are_windowed_voxels_with_their_labels() -> None:
    label = anatomy()
    dataset = PatchDataset([make_case("a", label, world_image(label.shape))], config(window_hu=(0, 32000)))
    image, patch = dataset[3]
    start = dataset.place(3).start
    inside = tuple(slice(a, a + n) for a, n in zip(start, SIZE, strict=True))
    assert image.shape == (1, *SIZE)
    assert image.dtype == torch.float32
    assert patch.dtype == torch.uint8
    np.testing.assert_array_equal(patch.numpy(), label[inside])
    np.testing.assert_allclose((image[0].numpy() + 1) * 16000, world_image(label.shape)[inside], atol=0.01)


def test_small_volume_is_surrounded_by_air() -> None:
    label = np.ones((16, 10, 4), np.uint8)
    image, patch = PatchDataset([make_case("a", label)], config())[0]
    assert int(patch.sum()) == label.size
    assert float(image[patch[None] == 0].max()) == -1
    assert float(image[patch[None] == 1].min()) == pytest.approx(0)  # 50 HU, mid-window


def test_lesions_at_the_border_are_reached_everywhere() -> None:
    label = np.zeros((40, 36, 20), np.uint8)
    label[0, 0, 0] = 2
    label[39, 35, 19] = 2
    dataset = PatchDataset([make_case("a", label)], config(class_mixture=(0, 0, 1)))
    for n in range(20):
        _, patch = dataset[n]
        assert int((patch == 2).sum()) == 1


def test_jitter_moves_the_drawn_voxel_off_the_centre() -> None:
    label = np.zeros((60, 60, 60), np.uint8)
    label[30, 30, 30] = 2
    starts = {}
    for jitter in (0.0, 0.5):
        dataset = PatchDataset([make_case("a", label)], config(class_mixture=(0, 0, 1), jitter=jitter))
        starts[jitter] = np.array([dataset.place(n).start for n in range(300)])
    assert np.unique(starts[0.0], axis=0).tolist() == [[22, 22, 26]]
    np.testing.assert_array_equal(np.ptp(starts[0.5], axis=0), [8, 8, 4])


def test_mixture_holds_when_a_case_lacks_a_class() -> None:
    mixture = (0.2, 0.3, 0.5)
    cases = [make_case("a", anatomy()), make_case("b", anatomy(tumour=False)), make_case("c", anatomy())]
    dataset = PatchDataset(cases, config(class_mixture=mixture))
    places = [dataset.place(n) for n in range(3000)]
    shares = np.bincount([place.label for place in places], minlength=3) / len(places)
    np.testing.assert_allclose(shares, mixture, atol=0.03)
    assert {place.case for place in places if place.label == 2} == {0, 2}


def test_same_class_mixture_as_label_sampler() -> None:
    label = anatomy((24, 24, 16))
    subject = tio.Subject(label=tio.LabelMap(tensor=torch.from_numpy(label)[None]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sampler = tio.LabelSampler(3, "label", {0: 0.2, 1: 0.3, 2: 0.5})
        theirs = [int(patch["label"].data[0, 1, 1, 1]) for patch in sampler(subject, 400)]
    dataset = PatchDataset([make_case("a", label)], config(patch_size=(3, 3, 3), jitter=0))
    ours = [int(dataset[n][1][1, 1, 1]) for n in range(400)]
    table = [np.bincount(drawn, minlength=3) for drawn in (ours, theirs)]
    assert chi2_contingency(table).pvalue > 0.01


@pytest.mark.parametrize("degrees", [0.0, 10.0, 40.0])
def test_margin_leaves_nothing_undefined(degrees: float) -> None:
    """A constant volume stays constant through any affine: no filled corner reaches the patch."""
    augment = AugmentConfig(affine_probability=1, degrees=degrees, scales=0.3)
    label = np.ones((80, 80, 60), np.uint8)
    dataset = PatchDataset([make_case("a", label)], config(augment=augment, jitter=0))
    dataset.cases[0].positions[1][:] = (40, 40, 30)
    for n in range(6):
        image, patch = dataset[n]
        assert image.shape == (1, *SIZE)
        assert float(image.min()) == pytest.approx(float(image.max()), abs=1e-5)
        assert int(patch.min()) == 1


def test_margin_is_no_larger_than_needed() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        affine = draw_affine(AugmentConfig(affine_probability=1), rng)
        assert max(margin(affine, (96, 96, 96), np.eye(4))) <= 24
    assert margin(tio.Affine((2, 2, 2), (0, 0, 0), (0, 0, 0)), SIZE, AFFINE) == (0, 0, 0)


def test_window_is_clipped_to_plus_minus_one() -> None:
    image = np.array([-1024, -200, 50, 300, 3000], np.int16)[:, None, None]
    np.testing.assert_allclose(normalise(image, (-200, 300)).ravel(), [-1, -1, 0, 1, 1], atol=1e-6)


def test_cases_that_cannot_train_are_refused() -> None:
    case = make_case("a", anatomy())
    unlabelled = Case("b", case.image, None, case.grid, {}, {})
    with pytest.raises(LiversegError, match="LS371: training case b has no label"):
        PatchDataset([case, unlabelled], config())
    with pytest.raises(LiversegError, match="LS372"):
        PatchDataset([make_case("a", anatomy(tumour=False))], config(class_mixture=(0, 0, 1)))


def test_dataset_reads_stored_cases_lazily(tmp_path: Path) -> None:
    label = anatomy()
    zarr.save_array(str(tmp_path / "image.zarr"), world_image(label.shape).T)
    image = zarr.open_array(tmp_path / "image.zarr", mode="r")
    case = make_case("a", label)
    dataset = PatchDataset(
        [Case("a", image, case.label, case.grid, case.positions, {})], config(), resident_mb=0
    )
    assert dataset.volumes[0][0] is image
    assert dataset[0][0].shape == (1, *SIZE)
