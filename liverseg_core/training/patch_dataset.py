"""What training sample n is: its place, its voxels and its augmentation, all decided by its number.

Sample n draws its class, case, place and augmentation from a generator seeded by (seed, n) alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int16, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from liverseg_core.cases.chunk_reader import StoredVolume, read_box
from liverseg_core.cases.store import Case
from liverseg_core.config import TrainConfig
from liverseg_core.errors import LiversegError
from liverseg_core.models.intensity import AIR_HU
from liverseg_core.training.augment import Draw, change_intensities, draw
from liverseg_core.training.places import Place, PlaceSampler, as_shape
from liverseg_core.training.warp import Plan, margin, warp


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
