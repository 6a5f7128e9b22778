"""The classical loader: a reference that reads the store, and draws what the stream draws."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchio as tio
from scipy.stats import chi2_contingency

from liverseg_core.cases.store import open_case
from liverseg_core.config import AugmentConfig, ComputeConfig, TrainConfig
from liverseg_core.training.patch_dataset import PatchDataset
from liverseg_core.training.patches import patch_stream
from liverseg_core.training.queue_loader import augmentations, build_queue

SHAPE = (28, 26, 24)


@pytest.fixture
def dataset(build: SimpleNamespace, tmp_path: Path) -> PatchDataset:
    label = np.zeros(SHAPE, np.uint8)
    label[6:22, 5:20, 4:18], label[8:13, 6:11, 6:12] = 1, 2
    image = np.array([-600, 60, 140], np.int16)[label]
    cases = [open_case(build.stored_case(tmp_path / name, image, label)) for name in "ab"]
    return PatchDataset(cases, config())


def config(**changes: object) -> TrainConfig:
    recipe = {"patch_size": (5, 5, 5), "queue_volume": (32, 24, 24), "loader": "queue", "jitter": 0}
    return TrainConfig.model_validate(recipe | changes)


def test_both_loaders_draw_the_same_classes(dataset: PatchDataset) -> None:
    """Chi-square over the class of the middle voxel, and both against the mixture that was asked for."""
    counts = []
    for loader in ("queue", "stream"):
        dataset.config = config(loader=loader)
        batches = patch_stream(dataset, range(150), 4, ComputeConfig())
        middle = torch.cat([label[:, 2, 2, 2] for _, label in batches])
        counts.append(np.bincount(middle.numpy(), minlength=3))
    assert chi2_contingency(counts).pvalue > 0.01
    for found in counts:
        np.testing.assert_allclose(found / 600, (0.2, 0.3, 0.5), atol=0.07)


def test_batches_look_like_the_stream_s(dataset: PatchDataset) -> None:
    dataset.config = config(augment=AugmentConfig(affine_probability=1), patch_size=(16, 16, 16))
    (image, label), *others = patch_stream(dataset, range(3), 2, ComputeConfig())
    assert len(others) == 2
    assert (image.shape, image.dtype) == ((2, 1, 16, 16, 16), torch.float32)
    assert (label.shape, label.dtype) == ((2, 16, 16, 16), torch.uint8)
    assert -1 <= float(image.min()) < float(image.max()) <= 1
    assert float(image[label[:, None] == 2].median()) == pytest.approx((140 + 200) / 250 - 1, abs=0.02)


def test_the_training_s_own_random_numbers_are_left_alone(dataset: PatchDataset) -> None:
    before = torch.get_rng_state()
    first, again, later = (
        torch.cat([image for image, _ in patch_stream(dataset, steps, 2, ComputeConfig())])
        for steps in (range(4), range(4), range(4, 8))
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_volumes_are_prepared_as_the_recipe_says(dataset: PatchDataset) -> None:
    dataset.config = config(queue_volume=(32, 24, 24), window_hu=(-200, 300))
    subject = build_queue(dataset).subjects_dataset[0]
    assert subject.spatial_shape == (32, 24, 24)
    assert subject["image"].data.unique().tolist() == pytest.approx([-1, 0.04, 0.36], abs=1e-6)
    assert float(subject["image"].data[0, 0].max()) == -1  # padding is air
    assert set(subject["label"].data.unique().tolist()) == {0, 1, 2}


def test_it_has_the_stream_s_transforms() -> None:
    setting = AugmentConfig(affine_probability=1, blur_probability=0.2, noise_probability=0.1)
    found = {type(transform).__name__: transform for transform in augmentations(setting)}
    assert found["RandomAffine"].scales == (0.9, 1.1) * 3
    assert found["RandomAffine"].degrees == (-10, 10) * 3
    assert (found["RandomAffine"].probability, found["RandomBlur"].probability) == (1, 0.2)
    image = tio.ScalarImage(tensor=torch.linspace(-1, 1, 64).reshape(1, 4, 4, 4))
    gamma = next(part for part in augmentations(AugmentConfig(gamma_probability=1)) if part.probability == 1)
    changed = gamma(image).data
    assert (float(changed.min()), float(changed.max())) == pytest.approx((-1, 1), abs=1e-6)
