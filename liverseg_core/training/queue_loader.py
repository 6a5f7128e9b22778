"""The classical loader: torchio's own queue over whole volumes, as reference for the patch stream.

Every volume is read, cropped or padded, brought to (−1, 1) and augmented whole; a label sampler draws a few
patches from it, which wait in a shuffled buffer. It can't start in the middle of an epoch: a resumed training
goes on with a new one. An affine fills the corners that it turns into a volume with the volume's minimum.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchio as tio
from torch import Tensor

from liverseg_core.arrays import Affine
from liverseg_core.cases.chunk_reader import StoredVolume
from liverseg_core.config import AugmentConfig, ComputeConfig, TrainConfig
from liverseg_core.training.patch_dataset import PatchDataset

PATCHES_PER_VOLUME = 5
VOLUMES_IN_QUEUE = 4


def queue_batches(
    dataset: PatchDataset, steps: range, batch_size: int, compute: ComputeConfig
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches like those of `patch_stream`, as many as there are steps.

    Args:
        dataset: Its cases and configuration; how it places patches is not used.
        steps: The first one seeds the order.
        batch_size: Patches of a batch.
        compute: How many processes read volumes.
    """
    config = dataset.config
    queue = build_queue(dataset, compute.loader_workers)
    batches: Iterator[Any] = iter(())
    seeded = torch.Generator().manual_seed(config.seed * 1_000_003 + steps.start)
    state = seeded.get_state()
    for _ in steps:
        # torchio draws from the one global generator, which is the training's.
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            batch = next(batches, None)
            if batch is None:
                batches = iter(tio.SubjectsLoader(queue, batch_size=batch_size, drop_last=True))
                batch = next(batches)
            state = torch.get_rng_state()
        yield batch["image"]["data"], batch["label"]["data"][:, 0].to(torch.uint8)


def build_queue(dataset: PatchDataset, workers: int = 0) -> tio.Queue:
    """SubjectsDataset → LabelSampler → Queue over the cases of a dataset."""
    config = dataset.config
    subjects = [
        tio.Subject(
            image=tio.ScalarImage(**_stored(case.image, case.grid.affine)),
            label=tio.LabelMap(**_stored(case.label, case.grid.affine)),
        )
        for case in dataset.cases
    ]
    shares = dict(enumerate(config.class_mixture[:3]))
    return tio.Queue(
        tio.SubjectsDataset(subjects, transform=volume_transforms(config)),
        max_length=PATCHES_PER_VOLUME * VOLUMES_IN_QUEUE,
        samples_per_volume=PATCHES_PER_VOLUME,
        sampler=tio.LabelSampler(config.patch_size, "label", shares),
        num_workers=workers,
        start_background=False,
    )


def volume_transforms(config: TrainConfig) -> tio.Transform:
    """What is done to a whole volume before patches are drawn from it."""
    return tio.Compose(
        [
            tio.CropOrPad(config.queue_volume, padding_mode="minimum"),
            tio.Clamp(*config.window_hu),
            tio.RescaleIntensity((-1, 1), in_min_max=config.window_hu),
            *augmentations(config.augment),
        ]
    )


def augmentations(config: AugmentConfig) -> list[tio.Transform]:
    """The transforms of `augment.py` that torchio has, in the same order; not brightness and contrast."""
    factor = (1.0, 1 / config.smallest_zoom)
    forth, back = _scaled(0.5, 0.5), _scaled(2, -1)  # gamma is for (0, 1)
    return [
        tio.RandomAffine(config.scales, config.degrees, p=config.affine_probability),
        tio.RandomFlip((0, 1, 2), config.flip_probability),
        tio.Compose([forth, tio.RandomGamma(config.log_gamma), back], p=config.gamma_probability),
        tio.RandomBlur(config.blur_sigma, p=config.blur_probability),
        tio.RandomAnisotropy(downsampling=factor, p=config.low_resolution_probability),
        tio.RandomNoise(std=(0, config.noise_std), p=config.noise_probability),
    ]


def _scaled(factor: float, shift: float) -> tio.Transform:
    return tio.Lambda(partial(_affine_intensity, factor, shift), types_to_apply=[tio.INTENSITY])


def _affine_intensity(factor: float, shift: float, image: Tensor) -> Tensor:
    return image * factor + shift


def _stored(array: Any, affine: Affine) -> dict[str, Any]:
    """Where an image of torchio comes from; it is read when its subject's turn comes."""
    volume = StoredVolume.of(array)
    return {"path": volume.folder, "reader": partial(_read, volume, affine)}


def _read(volume: StoredVolume, affine: Affine, _path: Path) -> tuple[Tensor, Affine]:
    return torch.from_numpy(volume.read())[None], affine
