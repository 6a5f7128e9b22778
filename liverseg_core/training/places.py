"""Where patches lie: at stored positions of a drawn kind, or anywhere."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from liverseg_core.arrays import Shape
from liverseg_core.cases.store import Case
from liverseg_core.config import TrainConfig
from liverseg_core.errors import LiversegError

KINDS: tuple[tuple[int, ...], ...] = ((0,), (1,), (2,), (1, 2))
"""The classes of each entry of `train.class_mixture`; a fifth entry asks for no voxel at all."""
ANYWHERE = len(KINDS)


@dataclass(frozen=True)
class Place:
    """Where a sample lies."""

    case: int
    """Index into the training cases."""
    label: int | None
    """Class of the drawn voxel; None where the patch itself was drawn."""
    start: Shape
    """First voxel of the patch; negative only in volumes smaller than a patch."""


@dataclass(frozen=True)
class PlaceSampler:
    """Draws places: first the kind, then a case that has it, then a voxel of it.

    Args:
        cases: Training cases.
        config: Class mixture, jitter and patch size.
        holders: Kind → the cases that have a position of it.
        mixture: Kind → its share of patches.
    """

    cases: Sequence[Case]
    config: TrainConfig
    holders: Sequence[Sequence[int]]
    mixture: Sequence[float]

    @classmethod
    def of(cls, cases: Sequence[Case], config: TrainConfig) -> "PlaceSampler":
        """A sampler whose mixture leaves out what no case has.

        Raises:
            LiversegError: LS372 when nothing is left to draw from.
        """
        holders = [
            [i for i, case in enumerate(cases) if any(len(case.positions.get(c, ())) for c in classes)]
            for classes in (*KINDS, (0, 1, 2))
        ]
        shares = [share if held else 0.0 for share, held in zip(config.class_mixture, holders, strict=False)]
        if not sum(shares):
            raise LiversegError(
                "LS372",
                "no training case has a voxel of any class in train.class_mixture",
                "labelled voxels of at least one class with a share above 0",
                "Check the labels with `liverseg verify`, or change train.class_mixture",
            )
        return cls(cases, config, holders, [share / sum(shares) for share in shares])

    def draw(self, rng: np.random.Generator) -> Place:
        """Draw one place."""
        kind = int(rng.choice(len(self.mixture), p=self.mixture))
        case = self.holders[kind][int(rng.integers(len(self.holders[kind])))]
        size, shape = np.array(self.config.patch_size), np.array(self.cases[case].grid.shape)
        room = np.maximum(shape - size, 0)
        label, start = None, rng.integers(0, room + 1)
        if kind != ANYWHERE:
            label = self._class(KINDS[kind], case, rng)
            positions = self.cases[case].positions[label]
            centre = positions[rng.integers(len(positions))]
            reach = (self.config.jitter * (size // 2)).astype(int)
            # Inside the volume, as inference windows are: a lesion at its border is off the centre, not cut.
            start = np.clip(centre - size // 2 + rng.integers(-reach, reach + 1), 0, room)
        return Place(case, label, as_shape(np.where(shape >= size, start, (shape - size) // 2)))

    def _class(self, classes: Sequence[int], case: int, rng: np.random.Generator) -> int:
        """One of these classes, as a voxel drawn from all of theirs in the case would have it."""
        if len(classes) == 1:
            return classes[0]
        voxels = np.array([self.cases[case].fingerprint["voxels"][c] for c in classes])
        return int(rng.choice(classes, p=voxels / voxels.sum()))


def as_shape(values: Shaped[np.ndarray, "3"]) -> Shape:
    """Three whole numbers of numpy's as plain ones."""
    x, y, z = (int(value) for value in values)
    return x, y, z
