"""A stream of training patches in which the sample's number decides everything.

Sample n draws its class, case, place and augmentation from a generator seeded by (seed, n) alone, so the
stream is the same for any number of loader workers, and resuming at a step needs no state but the step.
"""

import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchio as tio
from jaxtyping import Float32
from torch.utils.data import DataLoader, Dataset

from liverseg_core.arrays import Image, Shape
from liverseg_core.augment import augment, draw_affine, intensity_transforms, margin
from liverseg_core.config import ComputeConfig, TrainConfig
from liverseg_core.errors import LiversegError
from liverseg_core.store import Case, read_box

AIR_HU = -1024


@dataclass(frozen=True)
class Place:
    """Where sample n lies."""

    case: int
    """Index into the training cases."""
    label: int
    """Class of the drawn voxel."""
    start: Shape
    """First voxel of the patch; negative only in volumes smaller than a patch."""


class PatchDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Sample number → image (1, x, y, z) float32 in (−1, 1) and label (x, y, z) uint8.

    Args:
        cases: Labelled cases with stored positions.
        config: Patch size, class mixture, window, augmentation and seed.
        resident_mb: Cases that fit in this much memory together are read once, here.

    Raises:
        LiversegError: LS371 when a case has no label; LS372 when there are no positions to draw from.
    """

    def __init__(self, cases: Sequence[Case], config: TrainConfig, resident_mb: int = 0) -> None:
        self.cases, self.config = cases, config
        self.intensity = intensity_transforms(config.augment)
        self.holders = [
            [i for i, case in enumerate(cases) if len(case.positions.get(label, ()))]
            for label in range(len(config.class_mixture))
        ]
        self.mixture = _mixture(config, self.holders)
        self.volumes = [(case.image, _label(case)) for case in cases]
        if sum(image.nbytes + label.nbytes for image, label in self.volumes) <= resident_mb << 20:
            self.volumes = [(image[...], label[...]) for image, label in self.volumes]

    def place(self, n: int) -> Place:
        """Where sample n lies."""
        return self._place(np.random.default_rng((self.config.seed, n)))

    def __getitem__(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng((self.config.seed, n))
        place = self._place(rng)
        size, grid = self.config.patch_size, self.cases[place.case].grid
        affine = draw_affine(self.config.augment, rng)
        extra = margin(affine, size, grid.affine) if affine is not None else (0, 0, 0)
        start, box = np.subtract(place.start, extra), np.add(size, np.multiply(2, extra))
        image, label = self.volumes[place.case]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(rng.integers(2**63)))
            subject = augment(
                _subject(
                    normalise(read_box(image, _shape(start), _shape(box), AIR_HU), self.config.window_hu),
                    read_box(label, _shape(start), _shape(box), 0),
                    grid.affine @ _shift(start),
                ),
                affine,
                self.intensity,
            )
        inside = tuple(slice(m, m + n) for m, n in zip(extra, size, strict=True))
        image, label = subject["image"].data[:, *inside], subject["label"].data[0, *inside]
        return image.contiguous(), label.to(torch.uint8).contiguous()

    def _place(self, rng: np.random.Generator) -> Place:
        label = int(rng.choice(len(self.mixture), p=self.mixture))
        holders = self.holders[label]
        case = holders[rng.integers(len(holders))]
        positions = self.cases[case].positions[label]
        centre = positions[rng.integers(len(positions))]
        size, shape = np.array(self.config.patch_size), np.array(self.cases[case].grid.shape)
        reach = (self.config.jitter * (size // 2)).astype(int)
        start = centre - size // 2 + rng.integers(-reach, reach + 1)
        # Inside the volume, as inference windows are: a lesion at the border is off the centre, not cut off.
        start = np.where(shape >= size, np.clip(start, 0, np.maximum(shape - size, 0)), (shape - size) // 2)
        return Place(case, label, _shape(start))


def patch_stream(
    dataset: PatchDataset, steps: range, batch_size: int, compute: ComputeConfig
) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Batches (image, label) for these steps: sample numbers step·batch … step·batch + batch − 1."""
    workers = compute.loader_workers
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=range(steps.start * batch_size, steps.stop * batch_size),
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,  # open stores do not survive a fork
        worker_init_fn=_ignore_interrupt if workers else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # or the loader would draw its base seed from the training's generator
    )


def normalise(image: Image, window_hu: tuple[float, float]) -> Float32[np.ndarray, "x y z"]:
    """Map a CT window linearly to (−1, 1), clipped outside."""
    low, high = window_hu
    scaled = (image.astype(np.float32) - np.float32(low)) * np.float32(2 / (high - low)) - np.float32(1)
    return np.clip(scaled, -1, 1, out=scaled)


def _label(case: Case) -> Any:
    if case.label is None:
        raise LiversegError(
            "LS371",
            f"training case {case.name} has no label",
            "cases with a label",
            "Leave the case out of the training list, or ingest it with its label",
        )
    return case.label


def _mixture(config: TrainConfig, holders: Sequence[Sequence[int]]) -> list[float]:
    """The class mixture over the classes that some case has."""
    shares = [share if held else 0.0 for share, held in zip(config.class_mixture, holders, strict=True)]
    if not sum(shares):
        raise LiversegError(
            "LS372",
            "no training case has a voxel of any class in train.class_mixture",
            "labelled voxels of at least one class with a share above 0",
            "Check the labels with `liverseg verify`, or change train.class_mixture",
        )
    return [share / sum(shares) for share in shares]


def _subject(image: np.ndarray, label: np.ndarray, affine: np.ndarray) -> tio.Subject:
    return tio.Subject(
        image=tio.ScalarImage(tensor=torch.from_numpy(image)[None], affine=affine),
        label=tio.LabelMap(tensor=torch.from_numpy(label)[None], affine=affine),
    )


def _shift(start: np.ndarray) -> np.ndarray:
    shift = np.eye(4)
    shift[:3, 3] = start
    return shift


def _shape(values: np.ndarray) -> Shape:
    x, y, z = (int(value) for value in values)
    return x, y, z


def _ignore_interrupt(_worker: int) -> None:
    """Ctrl-C reaches the whole process group; the training loop alone answers it, after its checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
