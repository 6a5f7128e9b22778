"""Sliding windows over a volume: where they lie, what weight each voxel of one has, how they are added up.

Windows lie as torchio's GridSampler lays them: a step apart, the last one against the far edge. They are
added up in rows of equal z, upwards, and planes that no further row reaches are handed on, so that only as
many planes as a window is deep are ever held, however long the scan is.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from liverseg_core.arrays import Image, Shape
from liverseg_core.models.intensity import normalise

Kind = Literal["gaussian", "hann", "constant"]
Starts = tuple[int, ...]

SIGMA = 0.125
"""Of the Gaussian, as a share of the window."""
LEAST = 1e-3
"""No voxel of a Gaussian window has less weight, so that corners are never divided by nearly nothing."""


@dataclass(frozen=True)
class Tiling:
    """Where the windows of a volume lie.

    Args:
        shape: The volume, filled up to a window where it is smaller.
        size: Of a window.
        starts: First voxels of the windows along x, y and z, rising.
    """

    shape: Shape
    size: Shape
    starts: tuple[Starts, Starts, Starts]

    @property
    def row(self) -> list[tuple[int, int]]:
        """First voxels (x, y) of the windows of each row."""
        return [(x, y) for x in self.starts[0] for y in self.starts[1]]


def tile(shape: Shape, size: Shape, overlap: float) -> Tiling:
    """Lay windows over a volume.

    Args:
        shape: The volume's voxels along x, y and z.
        size: Of a window, in voxels.
        overlap: Share of a window that overlaps its neighbour, in [0, 1); rounded to an even number of
            voxels, and at least one voxel short of the window.

    Example:
        >>> tile((20, 8, 9), (8, 8, 8), 0.25).starts
        ((0, 6, 12), (0,), (0, 1))
    """
    x, y, z = (max(pair) for pair in zip(shape, size, strict=True))
    first, second, third = (_starts(n, m, overlap) for n, m in zip((x, y, z), size, strict=True))
    return Tiling((x, y, z), size, (first, second, third))


def window_weights(size: Shape, kind: Kind) -> Float32[np.ndarray, "x y z"]:
    """The weight of each voxel of a window: less towards its faces, where a network sees less around it."""
    if kind == "constant":
        return np.ones(size, np.float32)
    one = _hann if kind == "hann" else _gaussian
    x, y, z = (one(n) for n in size)
    weights: Float32[np.ndarray, "x y z"] = (x[:, None, None] * y[:, None] * z).astype(np.float32)
    return np.maximum(weights, np.float32(LEAST)) if kind == "gaussian" else weights


class Sums:
    """The weighted sums of the rows at work, on the device that predicts.

    Both hold (…, x, y, z) from the row's first plane on. They are float32 everywhere: since they are no
    deeper than a window, half their size would be worth less than the error of adding up in fp16.
    """

    def __init__(self, tiling: Tiling, classes: int, weights: Tensor) -> None:
        x, y, _ = tiling.shape
        self.size, self.weights = tiling.size, weights
        self.values = torch.zeros(classes, x, y, tiling.size[2], device=weights.device)
        self.total = torch.zeros(x, y, tiling.size[2], device=weights.device)

    def add(self, x: int, y: int, probabilities: Tensor) -> None:
        """Add a window of (class, x, y, z)."""
        box = np.s_[x : x + self.size[0], y : y + self.size[1]]
        self.values[:, *box].addcmul_(probabilities, self.weights)
        self.total[box] += self.weights

    def add_background(self, x: int, y: int) -> None:
        """Add a window in which class 0 is certain."""
        box = np.s_[x : x + self.size[0], y : y + self.size[1]]
        self.values[0, *box] += self.weights
        self.total[box] += self.weights

    def take(self, shape: Shape) -> Float32[np.ndarray, "z c y x"] | None:
        """The means of the lowest planes; None when one of them is no number.

        Args:
            shape: Voxels along x, y and z that are wanted; what a small volume was filled up with is not.
        """
        x, y, depth = shape
        values, share = self.values[..., :depth], self.total[..., :depth].reciprocal()
        if not values.sum().isfinite():
            return None
        means = np.empty((depth, len(values), y, x), np.float32)
        found, weight = values.cpu().numpy(), share.cpu().numpy()
        # Networks compute z-fastest, files are x-fastest: a row at a time, both orders stay in a cache, which
        # is several times as fast as all at once.
        for c, j in itertools.product(range(len(found)), range(y)):
            means[:, c, j] = (found[c, :x, j] * weight[:x, j]).T
        return means

    def drop(self, depth: int) -> None:
        """Let the lowest planes go."""
        for sums in (self.values, self.total):
            sums[..., : sums.shape[-1] - depth] = sums[..., depth:].clone()
            sums[..., sums.shape[-1] - depth :] = 0


def rows(starts: Starts, depth: int) -> Iterator[tuple[int, int]]:
    """Each row's first plane, and how many planes from there on no further row reaches.

    Example:
        >>> list(rows((0, 6, 9), depth=17))
        [(0, 6), (6, 3), (9, 8)]
    """
    return ((low, high - low) for low, high in zip(starts, (*starts[1:], depth), strict=True))


def _starts(n: int, size: int, overlap: float) -> Starts:
    shared = min(2 * round(overlap * size / 2), 2 * ((size - 1) // 2))
    steps = math.ceil((n - size) / (size - shared))
    return tuple(min(k * (size - shared), n - size) for k in range(steps + 1))


def _hann(n: int) -> Float32[np.ndarray, " n"]:
    return np.asarray(np.hanning(n + 2)[1:-1], np.float32)


def _gaussian(n: int) -> Float32[np.ndarray, " n"]:
    distance = (np.arange(n) - (n - 1) / 2) / (SIGMA * n)
    return np.asarray(np.exp(-(distance**2) / 2), np.float32)


def cut(
    image: Image, x: int, y: int, out: Float32[np.ndarray, "x y z"], window_hu: tuple[float, float]
) -> None:
    """Fill a window with what is at (x, y) of some planes, normalised as patches are in training."""
    for j in range(out.shape[1]):  # a row at a time, as in `take`
        out[:, j] = normalise(image[x : x + out.shape[0], y + j], window_hu)
