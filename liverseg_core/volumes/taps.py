"""What each output voxel is made of along one axis: which input voxels, with which weights."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, UInt32

from liverseg_core.volumes.geometry import AxisMap, Grid, axis_maps

Indices = Int32[np.ndarray, "taps n"]
Weights = Float32[np.ndarray, "*taps n"]
Flips = tuple[bool, bool, bool]

UPWARD = (False, False, False)


@dataclass(frozen=True)
class Taps:
    """Along one axis: the stored voxels that make each output voxel, and their part in it.

    Args:
        index: Two (linear) or four (cubic) stored indices, in canonical order.
        weight: Linear: of the second voxel; cubic: of all four.
    """

    index: Indices
    weight: Weights

    @property
    def arrays(self) -> tuple[UInt32[np.ndarray, "taps n"], Weights]:
        """For compiled functions: unsigned, since they look at each signed index for a negative one."""
        return self.index.astype(np.uint32), self.weight


def linear(axis: AxisMap, size: int) -> Taps:
    """The two voxels around each place."""
    return Taps(np.minimum([axis.lower, axis.lower + 1], size - 1).astype(np.int32), axis.weight)


def nearest(axis: AxisMap, size: int) -> Taps:
    """The same two, of which one has all the weight."""
    weight = np.floor(axis.weight + np.float32(0.5)).astype(np.float32)
    return linear(AxisMap(axis.lower, weight), size)


def cubic(axis: AxisMap, size: int) -> Taps:
    """The four voxels around each place: third-order convolution with a = −1/2.

    Beyond the edge the values go on as a straight line, so that a ramp stays one up to its end.

    Source: Keys, Cubic convolution interpolation for digital image processing, IEEE TASSP 29 (1981).
    """
    t = axis.weight.astype(np.float64)
    square, cube = t * t, t * t * t
    before, behind = (2 * square - t - cube) / 2, (cube - square) / 2
    lower, upper = (2 - 5 * square + 3 * cube) / 2, (t + 4 * square - 3 * cube) / 2
    # A voxel missing beyond the edge is 2 a − b: its weight goes to the two it continues.
    first, last = axis.lower == 0, axis.lower + 2 >= size
    lost, spare = before * first, behind * last
    weight = [before - lost, lower + 2 * lost - spare, upper - lost + 2 * spare, behind - spare]
    index = np.clip([axis.lower - 1, axis.lower, axis.lower + 1, axis.lower + 2], 0, size - 1)
    return Taps(index.astype(np.int32), np.array(weight, np.float32))


def all_taps(
    source: Grid, target: Grid, flips: Flips, kind: Callable[[AxisMap, int], Taps] = linear
) -> tuple[Taps, Taps, Taps]:
    """How `target`'s voxels are made of `source`'s, along x, y and z.

    Args:
        source: Canonical grid.
        target: Axis-parallel grid to fill.
        flips: Which canonical axes run against the stored ones, which the indices count along.
        kind: `linear`, `nearest` or `cubic`.
    """
    x, y, z = (
        Taps(size - 1 - taps.index if flip else taps.index, taps.weight)
        for axis, size, flip in zip(axis_maps(source, target), source.shape, flips, strict=True)
        for taps in [kind(axis, size)]
    )
    return x, y, z
