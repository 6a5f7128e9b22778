"""A stream of training patches in which the sample's number decides everything.

Sample n draws its class, case, place and augmentation from a generator seeded by (seed, n) alone, so the
stream is the same for any number of loader workers, and resuming at a step needs no state but the step.
"""

import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int16, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from liverseg_core.cases.chunk_reader import StoredVolume, read_box
from liverseg_core.cases.store import Case
from liverseg_core.config import ComputeConfig, TrainConfig
from liverseg_core.errors import LiversegError
from liverseg_core.models.intensity import AIR_HU
from liverseg_core.training.augment import Draw, change_intensities, draw
from liverseg_core.training.places import Place, PlaceSampler, as_shape
from liverseg_core.training.warp import Plan, margin, warp

CPU = torch.device("cpu")


class Cut(NamedTuple):
    """What was read for one patch, and what shall happen to it."""

    image: Int16[Tensor, "z y x"]
    label: UInt8[Tensor, "z y x"]
    draw: Draw


class PatchDataset(Dataset[tuple[Tensor, Tensor]]):
    """Sample number → image (1, x, y, z) float32 in (−1, 1) and label (x, y, z) uint8, x fastest in memory.

    Args:
        cases: Labelled cases with stored positions.
        config: Patch size, class mixture, window, augmentation and seed.
        resident_mb: Cases that fit in this much memory together are read once, here.

    Raises:
        LiversegError: LS371 when a case has no label; LS372 when there are no positions to draw from.
    """

    def __init__(self, cases: Sequence[Case], config: TrainConfig, resident_mb: int = 0) -> None:
        self.cases, self.config = cases, config
        self.sampler = PlaceSampler.of(cases, config)
        self.volumes: list[tuple[Any, Any]] = [
            (StoredVolume.of(case.image), StoredVolume.of(label_of(case))) for case in cases
        ]
        if sum(image.nbytes + label.nbytes for image, label in self.volumes) <= resident_mb << 20:
            self.volumes = [(image.read().T, label.read().T) for image, label in self.volumes]

    def place(self, n: int) -> Place:
        """Where sample n lies."""
        return self.sampler.draw(np.random.default_rng((self.config.seed, n)))

    def read(self, n: int) -> Cut:
        """The voxels that sample n needs, with the margin of its affine, as they are stored."""
        rng = np.random.default_rng((self.config.seed, n))
        place = self.sampler.draw(rng)
        drawn = draw(self.config.augment, self.cases[place.case].grid.affine, rng)
        extra = margin(drawn.matrix, self.config.patch_size)
        start = as_shape(np.subtract(place.start, extra))
        size = as_shape(np.add(self.config.patch_size, np.multiply(2, extra)))
        image, label = self.volumes[place.case]
        image, label = read_box(image, start, size, AIR_HU), read_box(label, start, size, 0)
        return Cut(torch.from_numpy(image.T), torch.from_numpy(label.T), drawn)

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([n])
        return images[0], labels[0]

    def __getitems__(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A batch, as a loader asks for it; stacking finished patches would copy every one of them."""
        shape = (len(numbers), *self.config.patch_size[::-1])
        images, labels = torch.empty(shape), torch.empty(shape, dtype=torch.uint8)
        plan = Plan(self.config.window_hu, self.config.augment.label_interpolation == "vote")
        with _one_thread():
            for n, image, label in zip(numbers, images, labels, strict=True):
                cut = self.read(n)
                boxes = cut.image.numpy(), cut.label.numpy()
                warp(boxes, cut.draw.matrix, plan, (image.numpy(), label.numpy()))
                changed = change_intensities(image, cut.draw)
                if changed is not image:
                    image.copy_(changed)
        # x stays fastest: turning the axes in memory would cost as much as an affine.
        return images[:, None].transpose(-1, -3), labels.transpose(-1, -3)


def patch_stream(
    dataset: PatchDataset,
    steps: range,
    batch_size: int,
    compute: ComputeConfig,
    device: torch.device = CPU,
) -> Iterable[tuple[Tensor, Tensor]]:
    """Batches (image, label) for these steps: sample numbers step·batch … step·batch + batch − 1.

    Args:
        dataset: What sample n is.
        steps: May have a stride: process r of w takes every w-th.
        batch_size: Patches of a batch.
        compute: How many worker processes read ahead.
        device: Where batches are augmented, and then lie, if `train.augment.on` is device.
    """
    if dataset.config.loader == "queue":
        from liverseg_core.training.queue_loader import queue_batches

        return queue_batches(dataset, steps, batch_size, compute)
    numbers = _Numbers(steps, batch_size)
    if dataset.config.augment.on == "device":
        cuts = _loader(_Cuts(dataset), numbers, batch_size, compute)
        return _augmented(cuts, dataset.config, device)
    return _loader(dataset, numbers, batch_size, compute)


class _Cuts(Dataset[Cut]):
    """Sample number → what is read for it."""

    def __init__(self, dataset: PatchDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, n: int) -> Cut:
        return self.dataset.read(n)


@dataclass(frozen=True)
class _Numbers:
    """The sample numbers of some steps, in order."""

    steps: range
    batch_size: int

    def __iter__(self) -> Iterator[int]:
        return (step * self.batch_size + i for step in self.steps for i in range(self.batch_size))

    def __len__(self) -> int:
        return len(self.steps) * self.batch_size


def _loader(
    dataset: Dataset[Any], numbers: _Numbers, batch_size: int, compute: ComputeConfig
) -> "DataLoader[Any]":
    workers = compute.loader_workers
    context = multiprocessing.get_context("forkserver")  # threads do not survive a fork
    context.set_forkserver_preload([__name__])  # or every worker would import torch anew
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=numbers,
        num_workers=workers,
        multiprocessing_context=context if workers else None,
        worker_init_fn=_ignore_interrupt if workers else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # or the loader would draw its base seed from the training's generator
        collate_fn=_as_they_are,
    )


def _augmented(
    batches: Iterable[list[Cut]], config: TrainConfig, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    from liverseg_core.training.device_augment import augment_batch

    for cuts in batches:
        yield augment_batch(cuts, config, device)


def _as_they_are(samples: Any) -> Any:
    return samples


@contextmanager
def _one_thread() -> Iterator[None]:
    """In the training's own process too, since a sum's bits depend on how many threads share it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def label_of(case: Case) -> Any:
    """A training case's label; LS371 without one."""
    if case.label is None:
        raise LiversegError(
            "LS371",
            f"training case {case.name} has no label",
            "cases with a label",
            "Leave the case out of the training list, or ingest it with its label",
        )
    return case.label


def _ignore_interrupt(_worker: int) -> None:
    """Ctrl-C reaches the whole process group; the training loop alone answers it, after its checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
