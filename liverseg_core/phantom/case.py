"""One phantom patient in the scanner: an anatomy becomes voxels, with soft borders, noise and orientation."""

from collections.abc import Iterator
from math import inf

import numpy as np
from jaxtyping import Float32
from scipy.ndimage import convolve1d

from liverseg_core.arrays import Affine, Image, Label, Shape, Spacing
from liverseg_core.phantom.anatomy import CAVITY, SPINE, WALL_MM, Anatomy, draw_anatomy
from liverseg_core.phantom.shapes import Axes, Ellipsoid, Grid, Volume, blend, centred_axes, stripes

Slice = Float32[np.ndarray, "x y"]

SLAB_VOXELS = 1 << 18
"""Painted together: few enough that the arrays stay in the processor's cache."""

AIR, LUNG, FAT, MUSCLE, MARROW = -1000.0, -840.0, -100.0, 52.0, 180.0
NOISE_HU = 20.0
CANAL = Ellipsoid((0, -84, 0), (9, 8, inf))
SPINOUS_PROCESS = Ellipsoid((0, -94, 0), (5, 16, inf))


def phantom_case(seed: int, index: int, size: Shape) -> tuple[Image, Label, Affine]:
    """Make one case; the same arguments give the same bytes.

    Args:
        seed: The phantom's seed.
        index: The case's number.
        size: Voxels along x, y and z. The field of view does not depend on it, so the spacing does.

    Returns:
        Image in HU, label and affine, in the orientation in which this case is stored.
    """
    anatomy = draw_anatomy(seed, index, size)
    dx, dy, dz = (extent / n for extent, n in zip(anatomy.field_mm, size, strict=True))
    x, y, z = centred_axes(size, (dx, dy, dz))
    image, label = np.empty(size, np.int16, "F"), np.empty(size, np.uint8, "F")
    noise = _noise(np.random.default_rng([seed, index, 2]), size)
    slab = max(1, SLAB_VOXELS // (size[0] * size[1]))
    for start in range(0, size[2], slab):
        part = slice(start, start + slab)
        clean, label[..., part] = _paint(anatomy, (x, y, z[part]), (dx + dy + dz) / 3)
        for k in range(clean.shape[2]):
            image[..., start + k] = np.rint(np.clip(clean[..., k] + next(noise), -1024, 3071))
    rng = np.random.default_rng([seed, index, 3])
    bed_mm = rng.uniform(-900, -300)  # z counts from the scanner's zero
    origin = (float(x[0]), float(y[0]), float(z[0]) + bed_mm)
    return _stored(image, label, (dx, dy, dz), origin, rng)


def _paint(anatomy: Anatomy, axes: Axes, soft_mm: float) -> tuple[Volume, Label]:
    """The noiseless HU of a slab, with borders as soft as a voxel, and its label."""
    grid = anatomy.nominal(axes)
    fine = anatomy.textures.fine.at(axes)
    rough = anatomy.roughness(axes)
    image = np.full(fine.shape, AIR, np.float32)
    cavity = CAVITY.depth(grid)
    _paint_trunk(image, anatomy, grid, anatomy.textures.bowel.at(axes), soft_mm)
    for organ in (*anatomy.organs, *anatomy.neighbours[1:]):
        blend(image, np.minimum(organ.solid.depth(grid) + fine, cavity + 10), organ.hu + 4 * fine, soft_mm)
    _paint_bones(image, anatomy, grid, soft_mm)
    liver = anatomy.liver_depth(grid, rough)
    blend(image, liver, anatomy.liver_hu + 5 * fine, soft_mm)
    for vessel in anatomy.vessels:
        blend(image, np.minimum(vessel.solid.depth(grid) + 0.7 * fine, liver), vessel.hu, soft_mm)
    label = (liver > 0).astype(np.uint8)
    for lesion in anatomy.lesions:
        inside = np.minimum(lesion.solid.depth(grid) + lesion.solid.size_mm * 0.1 * fine, liver)
        blend(image, inside, lesion.hu + 5 * fine, soft_mm)
        label[inside > 0] = 2
    return image, label


def _paint_trunk(image: Volume, anatomy: Anatomy, grid: Grid, bowel: Volume, soft_mm: float) -> None:
    """Skin to cavity: fat, the muscular wall, the belly's fat with bowel in it, and the lungs' base."""
    cavity = CAVITY.depth(grid)
    table = 4 - abs(grid.y + CAVITY.radii[1] + WALL_MM + anatomy.fat_mm + 12 - grid.x * grid.x * 4e-4)
    blend(image, table, -250.0, soft_mm)
    blend(image, cavity + WALL_MM + anatomy.fat_mm, FAT, soft_mm)
    blend(image, cavity + WALL_MM, MUSCLE, soft_mm)
    blend(image, cavity, FAT, soft_mm)
    blend(image, np.minimum(cavity - 3, (bowel - 0.1) * 9), 38.0 + 12 * bowel, soft_mm)
    gas = np.minimum((bowel - 1.7) * 9, grid.y - 15)
    blend(image, np.minimum(gas, cavity - 5), -850.0, soft_mm)
    dome = anatomy.lung_top_mm + cavity * 0.55 - 40
    blend(image, np.minimum(grid.z - dome, cavity - 1), LUNG + 30 * bowel, soft_mm)


def _paint_bones(image: Volume, anatomy: Anatomy, grid: Grid, soft_mm: float) -> None:
    cavity = CAVITY.depth(grid)
    slope = grid.z + 0.6 * grid.y
    ribs = np.minimum(stripes(slope, 29, 12), 3.8 - abs(cavity + 6.5))
    ribs = np.minimum(ribs, np.minimum(grid.z + 70 - 0.6 * grid.y, 62 - grid.y))
    blend(image, ribs, anatomy.bone_hu, soft_mm)
    vertebra = SPINE.depth(grid)
    blend(image, vertebra, 85.0, soft_mm)  # discs, where no vertebra covers them
    body = np.minimum(vertebra, stripes(grid.z, 34, 27))
    blend(image, body, anatomy.bone_hu, soft_mm)
    blend(image, body - 3.5, MARROW, soft_mm)
    process = np.minimum(SPINOUS_PROCESS.depth(grid), stripes(grid.z + 10, 34, 20))
    blend(image, process, anatomy.bone_hu, soft_mm)
    blend(image, CANAL.depth(grid) + 3, anatomy.bone_hu, soft_mm)
    blend(image, CANAL.depth(grid), 30.0, soft_mm)


def _noise(rng: np.random.Generator, size: Shape) -> Iterator[Slice]:
    """Slices of noise, correlated within the slice by the reconstruction kernel and with the slice before."""
    before = _smooth(rng.standard_normal(size[:2], dtype=np.float32))
    while True:
        here = _smooth(rng.standard_normal(size[:2], dtype=np.float32))
        yield NOISE_HU * (0.6 * before + 0.8 * here)
        before = here


def _smooth(white: Slice) -> Slice:
    """Apply the smallest binomial kernel along both axes and restore the variance."""
    kernel = (0.25, 0.5, 0.25)
    smooth: Slice = convolve1d(convolve1d(white, kernel, 0), kernel, 1) * (1 / 0.375)
    return smooth


def _stored(
    image: Image, label: Label, spacing_mm: Spacing, origin_mm: Spacing, rng: np.random.Generator
) -> tuple[Image, Label, Affine]:
    """Flip some axes, data and affine alike: every voxel keeps its place in the patient."""
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = origin_mm
    for axis in np.flatnonzero(rng.integers(0, 2, 3)).tolist():
        affine[:3, 3] += affine[:3, axis] * (image.shape[axis] - 1)
        affine[:3, axis] *= -1
        image, label = np.flip(image, axis), np.flip(label, axis)
    return np.asfortranarray(image), np.asfortranarray(label), affine
