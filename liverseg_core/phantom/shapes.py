"""Shapes for the phantom: each gives its depth, millimetres inside its surface, at any point.

Arithmetic is limited to + − × ÷ √, comparisons and rounding, which IEEE 754 fixes to the bit: numpy's exp and
sin differ in the last digit from one processor to the next, and a phantom must not.
"""

from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from liverseg_core.arrays import Shape

Volume = Float32[np.ndarray, "x y z"]
Axis = Float32[np.ndarray, "n"]
Axes = tuple[Axis, Axis, Axis]
Point = tuple[float, float, float]


class Grid(NamedTuple):
    """Coordinates in mm, of shapes that broadcast to one volume."""

    x: Volume
    y: Volume
    z: Volume


@dataclass(frozen=True)
class Ellipsoid:
    """A ball, stretched; a cylinder where a radius is infinite."""

    centre: Point
    radii: Point

    @property
    def size_mm(self) -> float:
        """The mean of its finite radii."""
        finite = [r for r in self.radii if isfinite(r)]
        return sum(finite) / len(finite)

    def depth(self, grid: Grid) -> Volume:
        """Approximate depth: exact at the surface and for a sphere."""
        terms = zip(grid, self.centre, self.radii, strict=True)
        q = sum(((at - c) * (1 / r)) ** 2 for at, c, r in terms if isfinite(r))
        return (1 - np.sqrt(q)) * self.size_mm


@dataclass(frozen=True)
class Tube:
    """A vessel between two points, narrowing from one radius to the other."""

    start: Point
    end: Point
    radii: tuple[float, float]

    @property
    def size_mm(self) -> float:
        """Its radius where it starts."""
        return self.radii[0]

    def depth(self, grid: Grid) -> Volume:
        """Depth below the tube's wall."""
        along = [e - s for s, e in zip(self.start, self.end, strict=True)]
        offset = [at - s for at, s in zip(grid, self.start, strict=True)]
        t = sum(o * a for o, a in zip(offset, along, strict=True)) * (1 / sum(a * a for a in along))
        t = np.clip(t, 0, 1)
        distance = np.sqrt(sum((o - t * a) ** 2 for o, a in zip(offset, along, strict=True)))
        return self.radii[0] + t * (self.radii[1] - self.radii[0]) - distance


Solid = Ellipsoid | Tube


@dataclass(frozen=True)
class Texture:
    """Smooth noise of unit variance: random numbers on a lattice, joined by cubic B-splines."""

    lattice: Volume
    origin: Point
    step_mm: float

    @classmethod
    def draw(cls, rng: np.random.Generator, extent_mm: Point, step_mm: float) -> "Texture":
        """Draw a texture that covers `extent_mm` around the origin."""
        shape = [int(e / step_mm) + 5 for e in extent_mm]
        lattice = rng.standard_normal(shape, dtype=np.float32) * 3  # B-splines pass a third of the deviation
        x, y, z = (-(n - 1) / 2 * step_mm for n in shape)
        return cls(lattice, (x, y, z), step_mm)

    def at(self, axes: Axes) -> Volume:
        """The noise on the outer product of three axes."""
        values = self.lattice
        for axis in (2, 1, 0):  # the long product comes last, when one axis is left to widen
            values = self._widen(values, axis, axes[axis])
        return values

    def _widen(self, values: Volume, axis: int, at_mm: Axis) -> Volume:
        position = (at_mm - self.origin[axis]) / self.step_mm
        first = np.clip(np.floor(position).astype(int), 1, values.shape[axis] - 3)
        t = np.clip(position - first, 0, 1).astype(np.float32)
        u = 1 - t
        weights = (u * u * u, 4 - 3 * t * t * (2 - t), 4 - 3 * u * u * (2 - u), t * t * t)
        shape = [-1 if i == axis else 1 for i in range(3)]
        wide: Volume = sum(
            np.take(values, first + k - 1, axis) * (w / 6).astype(np.float32).reshape(shape)
            for k, w in enumerate(weights)
        )
        return wide


def union(a: Volume, b: Volume, blend_mm: float) -> Volume:
    """The depth of two shapes grown together, with a fillet of about `blend_mm`."""
    share = np.clip(0.5 + (a - b) * (0.5 / blend_mm), 0, 1)
    grown: Volume = b + share * (a - b) + blend_mm * share * (1 - share)
    return grown


def blend(image: Volume, depth: Volume, hu: float | Volume, soft_mm: float) -> None:
    """Paint `hu` over what lies at positive depth, in place, with a border `soft_mm` wide."""
    cover = np.clip(depth * (1 / soft_mm) + 0.5, 0, 1)
    image += cover * (hu - image)


def stripes(at: Volume, period_mm: float, width_mm: float) -> Volume:
    """The depth inside bands of `width_mm`, repeated every `period_mm`."""
    phase = at * (1 / period_mm)
    depth: Volume = width_mm / 2 - np.abs(phase - np.rint(phase)) * period_mm
    return depth


def centred_axes(size: Shape, spacing_mm: Point) -> Axes:
    """Voxel centres along each axis in mm, zero in the middle."""
    x, y, z = ((np.arange(n) - (n - 1) / 2) * s for n, s in zip(size, spacing_mm, strict=True))
    return x.astype(np.float32), y.astype(np.float32), z.astype(np.float32)
