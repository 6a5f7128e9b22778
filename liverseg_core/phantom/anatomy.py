"""The phantom's patients: where everything lies, how bright it is, and how that varies from case to case.

Coordinates are RAS+ millimetres of a nominal patient, x to the right, y to the front, z to the head, zero in
the middle of the abdomen. `Anatomy.scale` stretches the nominal patient to this one.
"""

from dataclasses import dataclass, replace
from math import inf

import numpy as np

from liverseg_core.arrays import Shape
from liverseg_core.phantom.shapes import (
    Axes,
    Ellipsoid,
    Grid,
    Point,
    Solid,
    Texture,
    Tube,
    Volume,
    centred_axes,
    union,
)

CAVITY = Ellipsoid((0, 0, 0), (128, 88, inf))
WALL_MM = 13.0
SPINE = Ellipsoid((0, -62, 0), (22, 17, inf))
LARGEST_LESION_MM = 30.0


@dataclass(frozen=True)
class Organ:
    """Something of one brightness."""

    solid: Solid
    hu: float


@dataclass(frozen=True)
class Textures:
    """What keeps a patient from being made of ellipsoids."""

    warp: tuple[Texture, Texture, Texture]
    coarse: Texture
    bowel: Texture
    fine: Texture

    @classmethod
    def draw(cls, rng: np.random.Generator, extent_mm: Point) -> "Textures":
        """Draw all of a patient's textures."""
        x, y, z = (Texture.draw(rng, extent_mm, 60.0) for _ in range(3))
        coarse, bowel, fine = (Texture.draw(rng, extent_mm, step) for step in (34.0, 20.0, 11.0))
        return cls((x, y, z), coarse, bowel, fine)


@dataclass(frozen=True)
class Anatomy:
    """One patient. Organs are painted in the order they are listed, later over earlier."""

    field_mm: Point
    """Extent of the scan's field of view."""
    scale: Point
    fat_mm: float
    lung_top_mm: float
    bone_hu: float
    organs: tuple[Organ, ...]
    lobes: tuple[Ellipsoid, Ellipsoid, Ellipsoid]
    neighbours: tuple[Organ, ...]
    """What the liver gives way to: its depth ends at their surface."""
    liver_hu: float
    vessels: tuple[Organ, ...]
    lesions: tuple[Organ, ...]
    textures: Textures

    def nominal(self, axes: Axes, warp_mm: float = 6.0) -> Grid:
        """Where in the nominal patient the points of this one lie."""
        plain = np.meshgrid(*axes, indexing="ij", sparse=True)
        moved = zip(plain, self.textures.warp, self.scale, strict=True)
        return Grid(*((at + warp_mm * texture.at(axes)) * np.float32(1 / s) for at, texture, s in moved))

    def liver_depth(self, grid: Grid, rough: Volume) -> Volume:
        """Depth inside the liver, whose surface is `rough`, in mm."""
        right, lower, left = (lobe.depth(grid) for lobe in self.lobes)
        depth: Volume = union(union(right, lower, 12), left, 12) + rough
        depth = np.minimum(depth, CAVITY.depth(grid) - 2)
        for neighbour in self.neighbours:
            depth = np.minimum(depth, -neighbour.solid.depth(grid) - 1)
        return depth

    def roughness(self, axes: Axes) -> Volume:
        """How far the liver's surface leaves its ellipsoids, in mm."""
        return 4.5 * self.textures.coarse.at(axes) + 1.5 * self.textures.fine.at(axes)


def draw_anatomy(seed: int, index: int, size: Shape) -> Anatomy:
    """Draw the patient of a case.

    Args:
        seed: The phantom's seed.
        index: The case's number; every eighth patient has no tumour.
        size: Voxels of the scan: no lesion's radius is less than two of them.
    """
    rng = np.random.default_rng([seed, index, 1])
    scale = (rng.uniform(0.9, 1.08), rng.uniform(0.92, 1.12), rng.uniform(0.9, 1.06))
    fat_mm = rng.uniform(7, 24)
    width_mm = 2 * (CAVITY.radii[0] + WALL_MM + fat_mm) * scale[0]
    across_mm = min(max(width_mm * rng.uniform(1.03, 1.12), 300.0), 380.0)
    field_mm = (across_mm, across_mm, rng.uniform(185, 255))
    liver_hu = rng.uniform(78, 122)
    anatomy = Anatomy(
        field_mm=field_mm,
        scale=scale,
        fat_mm=fat_mm,
        lung_top_mm=rng.uniform(76, 90),
        bone_hu=rng.uniform(350, 600),
        organs=_organs(rng, liver_hu),
        lobes=_lobes(rng),
        neighbours=_neighbours(rng, liver_hu),
        liver_hu=liver_hu,
        vessels=_vessels(rng, liver_hu + rng.uniform(12, 55)),
        lesions=(),
        textures=Textures.draw(rng, field_mm),
    )
    if (seed + index) % 8 == 5:
        return anatomy
    largest_voxel_mm = max(extent / n for extent, n in zip(field_mm, size, strict=True))
    return replace(anatomy, lesions=_lesions(rng, anatomy, 2 * largest_voxel_mm))


def _ball(rng: np.random.Generator, centre: Point, radii: Point, jitter_mm: float = 5) -> Ellipsoid:
    x, y, z = (c + rng.uniform(-jitter_mm, jitter_mm) for c in centre)
    a, b, c = (r * rng.uniform(0.88, 1.12) for r in radii)
    return Ellipsoid((x, y, z), (a, b, c))


def _organs(rng: np.random.Generator, liver_hu: float) -> tuple[Organ, ...]:
    stomach = _ball(rng, (-52, 18, 28), (40, 36, 44))
    x, y, z = stomach.centre
    bubble = Ellipsoid(
        (x, y + stomach.radii[1] * 0.75, z), (24, 15, 30)
    )  # air rises: the patient lies supine
    contents = rng.uniform(10, 70) if rng.uniform() < 0.75 else rng.uniform(150, 240)
    kidney_hu = rng.uniform(110, 190)
    left_kidney = _ball(rng, (-60, -46, -38), (25, 24, 50))
    medulla = Ellipsoid(left_kidney.centre, (12, 11, 34))
    return (
        Organ(_ball(rng, (-22, 18, 112), (62, 52, 50)), rng.uniform(90, 160)),  # heart
        Organ(Ellipsoid((-38, -80, 0), (28, 18, inf)), 55.0),  # the long muscles of the back
        Organ(Ellipsoid((38, -80, 0), (28, 18, inf)), 55.0),
        Organ(_ball(rng, (-15, 20, -42), (52, 13, 13)), rng.uniform(60, 100)),  # pancreas
        Organ(left_kidney, kidney_hu),
        Organ(medulla, kidney_hu - 45),
        Organ(stomach, contents),
        Organ(bubble, -900.0),
        Organ(_ball(rng, (-94, -34, 32), (26, 36, 44)), liver_hu + rng.uniform(-10, 16)),  # spleen
        Organ(_ball(rng, (-12, -36, 0), (10.5, 10.5, inf), 3), liver_hu + rng.uniform(20, 80)),  # aorta
    )


def _lobes(rng: np.random.Generator) -> tuple[Ellipsoid, Ellipsoid, Ellipsoid]:
    grown = rng.uniform(0.93, 1.08)
    return (
        _ball(rng, (64, -4, 16), (58 * grown, 68 * grown, 68 * grown)),
        _ball(rng, (82, -8, -34), (34 * grown, 46 * grown, 56 * grown), 8),
        _ball(rng, (-2, 40, 36), (62, 27 * grown, 34 * grown), 9),
    )


def _neighbours(rng: np.random.Generator, liver_hu: float) -> tuple[Organ, ...]:
    kidney = _ball(rng, (58, -46, -48), (25, 24, 48))
    return (
        Organ(SPINE, 0.0),  # painted as bone later
        Organ(kidney, rng.uniform(110, 190)),
        Organ(_ball(rng, (40, 42, -26), (14, 14, 25)), rng.uniform(2, 25)),  # gallbladder
        Organ(
            _ball(rng, (20, -30, 0), (12, 9.5, inf), 3), liver_hu + rng.uniform(5, 50)
        ),  # inferior vena cava
    )


def _vessels(rng: np.random.Generator, hu: float) -> tuple[Organ, ...]:
    """Three hepatic veins from below the dome, and the portal vein with its branches."""

    def tube(start: Point, end: Point, radii: tuple[float, float]) -> Organ:
        x, y, z = (e + rng.uniform(-9, 9) for e in end)
        return Organ(Tube(start, (x, y, z), radii), hu)

    confluence, hilum = (22.0, -24.0, 60.0), (30.0, 0.0, 0.0)
    fork = (52.0, 0.0, 12.0)
    return (
        tube(confluence, (100, -20, 10), (5.5, 2.0)),
        tube(confluence, (60, 38, 15), (5.5, 2.0)),
        tube(confluence, (0, 45, 38), (5.0, 1.8)),
        Organ(Tube((5, 5, -40), hilum, (6.5, 6.5)), hu),
        Organ(Tube(hilum, fork, (6.0, 5.5)), hu),
        tube(hilum, (8, 42, 30), (5.0, 2.5)),
        tube(fork, (98, 20, 28), (4.5, 1.8)),
        tube(fork, (88, -38, 30), (4.5, 1.8)),
        tube(fork, (92, -5, -45), (4.5, 1.8)),
        tube(fork, (65, 35, -25), (3.5, 1.5)),
    )


def _lesions(rng: np.random.Generator, anatomy: Anatomy, smallest_mm: float) -> tuple[Organ, ...]:
    """One to seven lesions; the first is of fair size, a quarter sit at the liver's border."""
    step = 5.0
    x, y, z = (int(extent / step) for extent in anatomy.field_mm)
    axes = centred_axes((x, y, z), (step, step, step))
    grid = anatomy.nominal(axes)
    depth = anatomy.liver_depth(grid, anatomy.roughness(axes))
    lesions = []
    for number in range(rng.choice([1, 2, 2, 3, 3, 4, 5, 6, 7])):
        floor = max(smallest_mm, 12.0 if number == 0 else 0.0)
        spread = rng.uniform()
        radius = floor + max(LARGEST_LESION_MM - floor, 0.0) * spread * spread
        near, far = (0.0, 0.4 * radius) if rng.uniform() < 0.25 else (0.5 * radius, np.inf)
        places = np.flatnonzero((depth > near) & (depth < far))
        place = np.unravel_index(rng.choice(places) if len(places) else depth.argmax(), depth.shape)
        x_mm, y_mm, z_mm = (float(at[place]) for at in grid)
        a, b, c = (radius * rng.uniform(0.8, 1.25) / s for s in anatomy.scale)
        hu = anatomy.liver_hu - rng.uniform(30, 60)
        lesions.append(Organ(Ellipsoid((x_mm, y_mm, z_mm), (a, b, c)), hu))
    return tuple(lesions)
