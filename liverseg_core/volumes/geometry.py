"""Where voxels are: grids, canonical orientation, and the maps between aligned grids.

A grid is a shape and an affine. Canonical means RAS+ axis order reached by permutations and flips only, so an
oblique scan stays oblique and every voxel keeps its place in the patient.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int32, Shaped

from liverseg_core.arrays import Affine, Shape, Spacing
from liverseg_core.errors import LiversegError

MAX_VOXELS = 2**31
"""4 GB as int16: four times the largest whole-trunk CT at 0.7 mm."""


@dataclass(frozen=True)
class Grid:
    """A voxel lattice in the patient.

    Args:
        shape: Voxels along x, y, z.
        affine: Voxel index → RAS+ mm.
    """

    shape: Shape
    affine: Affine

    @property
    def spacing_mm(self) -> Spacing:
        """Distance between neighbouring voxel centres along each axis."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


@dataclass(frozen=True)
class Orientation:
    """How stored axes become canonical ones.

    Args:
        axes: `axes[k]` is the stored axis that becomes canonical axis k.
        flips: Whether canonical axis k runs against its stored axis.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def to_canonical(self, stored: Shaped[np.ndarray, "_ _ _"]) -> Shaped[np.ndarray, "x y z"]:
        """View a stored volume in canonical order; copies nothing."""
        return stored.transpose(self.axes)[self._slices()]

    def from_canonical(self, canonical: Shaped[np.ndarray, "x y z"]) -> Shaped[np.ndarray, "_ _ _"]:
        """View a canonical volume in stored order; the inverse of `to_canonical`."""
        return canonical[self._slices()].transpose(np.argsort(self.axes))

    def canonical_grid(self, stored: Grid) -> Grid:
        """The grid of the canonical view of a volume stored on `stored`."""
        to_stored = np.zeros((4, 4))
        to_stored[3, 3] = 1
        for k, (axis, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            to_stored[axis, k] = -1 if flip else 1
            to_stored[axis, 3] = stored.shape[axis] - 1 if flip else 0
        x, y, z = (stored.shape[axis] for axis in self.axes)
        return Grid((x, y, z), stored.affine @ to_stored)

    @property
    def code(self) -> str:
        """Where each stored axis points, such as LPS: left, posterior and superior."""
        letters = ("LPI"[k] if flip else "RAS"[k] for k, flip in enumerate(self.flips))
        return "".join(letter for _, letter in sorted(zip(self.axes, letters, strict=True)))

    def _slices(self) -> tuple[slice, slice, slice]:
        x, y, z = (slice(None, None, -1 if flip else 1) for flip in self.flips)
        return x, y, z


@dataclass(frozen=True)
class AxisMap:
    """Linear interpolation along one axis: `out[j] = (1 - w[j]) * in[lower[j]] + w[j] * in[lower[j] + 1]`.

    `lower + 1` stays inside the source wherever w > 0: beyond the outermost voxel centres the edge is held.
    """

    lower: Int32[np.ndarray, " n"]
    weight: Float32[np.ndarray, " n"]


def corner_distance_mm(a: Grid, b: Grid) -> float:
    """How far apart the corners of two grids of one shape are at most; infinite where the shapes differ."""
    if a.shape != b.shape:
        return math.inf
    corners = np.array([[*corner, 1] for corner in itertools.product(*((0, size - 1) for size in a.shape))])
    return float(np.linalg.norm(corners @ (a.affine - b.affine).T, axis=1).max())


def canonical_orientation(affine: Affine) -> Orientation:
    """The permutation and flips that bring a volume with this affine nearest to RAS+."""
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(cosines)
    nearest = left @ right  # the rotation without shear; column i: where stored axis i points
    axes, flips = [0, 0, 0], [False, False, False]
    # the clearest first, and each canonical axis once, as nibabel decides
    for stored in np.argsort(-(nearest**2).max(axis=0), kind="stable"):
        canonical = int(np.abs(nearest[:, stored]).argmax())
        axes[canonical], flips[canonical] = int(stored), bool(nearest[canonical, stored] < 0)
        nearest[canonical] = 0
    x, y, z = axes
    fx, fy, fz = flips
    return Orientation((x, y, z), (fx, fy, fz))


def directions(axes: str) -> Float64[np.ndarray, "3 3"]:
    """Unit vectors in RAS+, a column each, of axes that point as three letters say, such as LPS.

    Raises:
        ValueError: They are not one of R and L, one of A and P, and one of S and I.
    """
    found = np.zeros((3, 3))
    for column, letter in enumerate(axes):
        canonical = max("RAS".find(letter), "LPI".find(letter))
        if canonical < 0 or column > 2:
            raise ValueError(f"{axes!r} names no three axes")
        found[canonical, column] = 1 if letter in "RAS" else -1
    if not np.array_equal(np.abs(found).sum(axis=1), [1, 1, 1]):
        raise ValueError(f"{axes!r} names no three axes")
    return found


def resampled_grid(source: Grid, spacing_mm: Spacing) -> Grid:
    """The grid of the same field of view at another spacing.

    Direction and centre are kept exactly, so resampling commutes with flips; each outer edge moves by at most
    a quarter of an output voxel, since a whole number of voxels seldom fills the field of view.

    Raises:
        LiversegError: LS319 when the result would be larger than `MAX_VOXELS`.
    """
    ratio = np.divide(spacing_mm, source.spacing_mm)
    sizes = np.maximum(1, np.floor(np.divide(source.shape, ratio) + 0.5 - 1e-6))
    if not np.all(sizes < MAX_VOXELS) or np.prod(sizes) > MAX_VOXELS:
        raise LiversegError(
            "LS319",
            f"resampling {source.shape} voxels of {_mm(source.spacing_mm)} to {_mm(spacing_mm)} would make "
            f"{'x'.join(f'{size:.0f}' for size in sizes)} voxels",
            f"at most {MAX_VOXELS} voxels",
            "Check the spacing in the header, or choose a larger ingest.spacing_mm",
        )
    step = np.eye(4)
    step[:3, :3] = np.diag(ratio)
    step[:3, 3] = (np.subtract(source.shape, 1) - (sizes - 1) * ratio) / 2
    x, y, z = (int(size) for size in sizes)
    return Grid((x, y, z), source.affine @ step)


def axis_maps(source: Grid, target: Grid) -> tuple[AxisMap, AxisMap, AxisMap]:
    """Interpolation maps that carry values on `source` to the voxel centres of an axis-parallel `target`."""
    step = np.linalg.solve(source.affine, target.affine)
    assert np.allclose(step[:3, :3], np.diag(np.diag(step)[:3]), atol=1e-3), "grids are not axis-parallel"
    x, y, z = (_axis_map(source.shape[k], target.shape[k], step[k, k], step[k, 3]) for k in range(3))
    return x, y, z


def _axis_map(size: int, count: int, ratio: float, offset: float) -> AxisMap:
    position = np.clip(np.arange(count) * ratio + offset, 0, size - 1)
    position = np.where(np.abs(position - np.rint(position)) < 1e-5, np.rint(position), position)
    lower = np.minimum(np.floor(position), max(size - 2, 0)).astype(np.int32)
    return AxisMap(lower, (position - lower).astype(np.float32))


def _mm(spacing_mm: Spacing) -> str:
    return "x".join(f"{value:.4g}" for value in spacing_mm) + " mm"
