"""A stream of training batches: the samples of each step, by their numbers.

A sample's number decides everything, so the stream is the same for any number of loader workers, and resuming
at a step needs no state but the step.
"""

import multiprocessing
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from liverseg_core.config import ComputeConfig, TrainConfig
from liverseg_core.training.device_augment import augment_batch
from liverseg_core.training.patch_dataset import Cut, PatchDataset

CPU = torch.device("cpu")


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
        device: Where batches go: for a GPU they lie in pinned memory. They are augmented, and then lie, there
            if `train.augment.on` is device.
    """
    if dataset.config.loader == "queue":
        from liverseg_core.training.queue_loader import queue_batches  # torchio takes a second to import

        return queue_batches(dataset, steps, batch_size, compute)
    numbers, pinned = _Numbers(steps, batch_size), device.type == "cuda"
    if dataset.config.augment.on == "device":
        cuts = _loader(_Cuts(dataset), numbers, batch_size, compute, pinned)
        return _augmented(cuts, dataset.config, device)
    return _loader(dataset, numbers, batch_size, compute, pinned)


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
    dataset: Dataset[Any], numbers: _Numbers, batch_size: int, compute: ComputeConfig, pinned: bool
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
        pin_memory=pinned,
        generator=torch.Generator(),  # or the loader would draw its base seed from the training's generator
        collate_fn=_as_they_are,
    )


def _augmented(
    batches: Iterable[list[Cut]], config: TrainConfig, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    for cuts in batches:
        yield augment_batch(cuts, config, device)


def _as_they_are(samples: Any) -> Any:
    return samples


def _ignore_interrupt(_worker: int) -> None:
    """Ctrl-C reaches the whole process group; the training loop alone answers it, after its checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
