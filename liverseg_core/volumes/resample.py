"""Separable resampling, one z plane at a time.

Planes go in and come out in order, and only two (cubic: four) are alive at once, so a volume can stream
through. Planes are indexed (y, x), contiguous along x. They may be stored against the canonical axes
(`flips`): the in-plane axes are turned on the way, and planes that come from the top leave from the top. A
flip changes no bit of them.
"""

import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Float32, Int16, Shaped, UInt8

from liverseg_core.volumes import plain
from liverseg_core.volumes.geometry import Grid
from liverseg_core.volumes.taps import UPWARD, Flips, Taps, all_taps, cubic, linear, nearest

ImagePlane = Int16[np.ndarray, "y x"]
LabelPlane = UInt8[np.ndarray, "y x"]
FloatPlane = Float32[np.ndarray, "y x"]
Plane = Shaped[np.ndarray, "y x"]
ProbabilityPlane = Float32[np.ndarray, "c y x"]
"""One z plane of class probabilities."""
AnyPlane = TypeVar("AnyPlane", Plane, ProbabilityPlane)

COMPILED_FROM = 1 << 25
"""Voxels from which compiled loops are worth their import: numpy takes three to four times as long."""


def resample_image(
    planes: Iterable[Plane],
    source: Grid,
    target: Grid,
    flips: Flips = UPWARD,
    method: Literal["linear", "cubic"] = "linear",
) -> Iterator[ImagePlane]:
    """Interpolate HU planes and round to int16.

    Both go through the voxels and keep ramps; cubic is sharper, and overshoots at hard borders.

    Args:
        planes: The source's planes, any real dtype.
        source: Canonical grid of the planes.
        target: Axis-parallel grid to fill.
        flips: Which canonical axes run against the stored ones.
        method: Of interpolation.
    """
    if method == "cubic":
        from liverseg_core.volumes import compiled

        x, y, z = all_taps(source, target, flips, cubic)
        in_plane = functools.partial(compiled.cubic_2d, along_x=x.arrays, along_y=y.arrays)
        for k, window in _windows(planes, z, flips[2], in_plane):
            yield compiled.mix_to_int16(window, z.weight[:, k])
        return
    x, y, z = all_taps(source, target, flips)
    loops = _linear_loops(source, target)
    in_plane = functools.partial(loops.linear_2d, along_x=x.arrays, along_y=y.arrays)
    for k, (lower, upper) in _windows(planes, z, flips[2], in_plane):
        yield loops.blend_to_int16(lower, upper, z.weight[k])


def resample_label(
    planes: Iterable[LabelPlane], source: Grid, target: Grid, method: str, flips: Flips = UPWARD
) -> Iterator[LabelPlane]:
    """Resample labels by vote (the class with the largest linear weight) or by nearest voxel.

    Label values are never interpolated. Equal votes go to the higher class, which keeps thin tumours.
    """
    from liverseg_core.volumes import compiled

    x, y, z = all_taps(source, target, flips, nearest if method == "nearest" else linear)
    along_x, along_y = x.arrays, y.arrays
    for k, (lower, upper) in _windows(planes, z, flips[2]):
        yield compiled.vote(lower, upper, z.weight[k], along_x, along_y)


def resample_probabilities(
    planes: Iterable[ProbabilityPlane], source: Grid, target: Grid
) -> Iterator[ProbabilityPlane]:
    """Carry planes of class probabilities, upwards, linearly to another grid's planes.

    No more than two of the source's planes are held, so the whole never exists.
    """
    x, y, z = all_taps(source, target, UPWARD)
    loops = _linear_loops(source, target)

    def in_plane(classes: ProbabilityPlane) -> ProbabilityPlane:
        return np.stack([loops.linear_2d(np.ascontiguousarray(one), x.arrays, y.arrays) for one in classes])

    for k, (lower, upper) in _windows(planes, z, False, in_plane):
        count, rows, columns = lower.shape
        pair = (plane.reshape(count * rows, columns) for plane in (lower, upper))
        yield loops.blend(*pair, z.weight[k]).reshape(count, rows, columns)


def _windows(
    planes: Iterable[AnyPlane],
    taps: Taps,
    falling: bool,
    prepare: Callable[[AnyPlane], AnyPlane] = lambda plane: plane,
) -> Iterator[tuple[int, tuple[AnyPlane, ...]]]:
    """For each output plane its z and the input planes it is made of; consumes `planes` to its end.

    Planes between those that an output plane needs are neither prepared nor held.
    """
    source = enumerate(planes)
    held: dict[int, AnyPlane] = {}
    count = taps.index.shape[1]
    for k in reversed(range(count)) if falling else range(count):
        needed = taps.index[:, k].tolist()
        while max(needed) not in held:
            at, plane = next(source)
            if at >= min(needed):
                held[at] = prepare(plane)
        held = {at: plane for at, plane in held.items() if at >= min(needed)}
        yield k, tuple(held[at] for at in needed)
    for _ in source:  # a reader behind the iterator checks its end
        pass


def _linear_loops(source: Grid, target: Grid) -> ModuleType:
    """Compiled loops for a large volume or where numba is loaded anyway, else numpy's: equal bits."""
    large = max(math.prod(source.shape), math.prod(target.shape)) >= COMPILED_FROM
    if large or "numba" in sys.modules:
        from liverseg_core.volumes import compiled

        return compiled
    return plain
