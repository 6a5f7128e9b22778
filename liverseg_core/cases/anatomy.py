"""How a body lies in a scan, measured on some of its voxels, to be held against what the header says.

Four things hold for nearly everybody, however the scanner was set: bone lies behind the middle of the body;
most of its solid tissue, the liver, lies on the right; lungs lie above the rest; and a scan cuts through the
body at its upper and lower ends, seldom at its sides.

Measured on CTs of nine patients and on phantoms, right as they lie: bone 18 to 93 mm behind the body's
middle, deep solid tissue 38 to 86 mm and the liver 41 to 69 mm on its right, lungs .25 to .48 of the scan's
height above it, the ends .39 to 1 of the largest section. The bounds lie between these and what a turned scan
has. Up can't be told from down where no lungs are in the scan, nor always a turn by 90° in a crop.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int16, Shaped, UInt8

from liverseg_core.arrays import Shape, Spacing

STEP_MM = 5.0
"""Between the voxels that are looked at."""
BODY_HU, BODY_MM = -200, 15.0
"""Where less than half is brighter, this far around, there is a sheet, or the table."""
BONE_HU, DENSE_HU = 300, 800
"""Between them bone counts more and more: contrast in bowel and vessels is seldom as dense."""
SOLID_HU, DEEP_MM = (0, 220), 20.0
"""Half the edge of a cube that fits into the liver, and hardly into muscle, kidneys or bowel."""
LUNG_HU = (-970, -600)
LEAST_ML = {"body": 50.0, "bone": 0.3, "solid": 50.0, "lungs": 10.0, "liver": 20.0}
LEAST_SHARE = 0.05
"""Less of it says nothing; less than that may do where it is so much of the body, in a few slices."""

WHOLE, CUT = 0.25, 0.35
"""Shares of the largest section, in the end planes of an axis, of a body that ends there and that goes on."""
PADDED_MM = 10.0
"""Above and below, planes of air may have been added."""
NARROW = 0.85
"""Width against depth; of patients 1.1 to 1.7."""
IN_FRONT_MM, ASIDE_MM = 10.0, 20.0
SOLID_LEFT_MM, LIVER_LEFT_MM = 20.0, 5.0
LUNGS_BELOW = 0.15

Coarse = Shaped[np.ndarray, "x y z"]
Mask = Bool[np.ndarray, "x y z"]
Steps = tuple[float, ...]


class CoarseScan:
    """Gathers every so many voxels of a volume, slab by slab, about `STEP_MM` apart.

    Args:
        shape: The whole volume (x, y, z).
        spacing_mm: Of its voxels.
    """

    def __init__(self, shape: Shape, spacing_mm: Spacing) -> None:
        self.steps = [max(1, min(n, round(STEP_MM / mm))) for n, mm in zip(shape, spacing_mm, strict=True)]
        self.spacing_mm = tuple(mm * step for mm, step in zip(spacing_mm, self.steps, strict=True))
        kept = [len(range(step // 2, n, step)) for n, step in zip(shape, self.steps, strict=True)]
        self.image = np.zeros(kept, np.int16)
        self.label = np.zeros(kept, np.uint8)

    def add(
        self, start: int, image: Int16[np.ndarray, "z y x"], label: UInt8[np.ndarray, "z y x"] | None
    ) -> None:
        """Take in the slab whose first plane is z = `start`."""
        x, y, z = self.steps
        first = (z // 2 - start) % z
        at = (start + first) // z
        for kept, slab in ((self.image, image), (self.label, label)):
            if slab is not None:
                some = slab[first::z, y // 2 :: y, x // 2 :: x].T
                kept[:, :, at : at + some.shape[2]] = some

    def anatomy(self) -> dict[str, Any] | None:
        """How the body lies (see `measure`)."""
        return measure(self.image, self.label > 0, self.spacing_mm)


def measure(image: Coarse, liver: Mask, spacing_mm: Steps) -> dict[str, Any] | None:
    """How the body lies in a coarse canonical volume, as plain JSON values; None where there is no body.

    Args:
        image: HU.
        liver: On the same voxels; empty where nobody knows.
        spacing_mm: Between them.

    Returns:
        `cut`: for each axis the share of the body's largest section at the emptier end; `wide`: its
        width against its depth. Against its middle, None where there is too little of it: `bone_mm`, to the
        right and to the front; `solid_right_mm` and `liver_right_mm`; `lungs_above`, a share of the height.
    """
    hu = image.astype(np.float32)
    body = _mean_around(hu > BODY_HU, BODY_MM, spacing_mm, (0, 1)) > 0.5
    smooth = _mean_around(hu, STEP_MM, spacing_mm)
    solid = body & (smooth > SOLID_HU[0]) & (smooth < SOLID_HU[1])
    weights = {
        "body": body,
        "bone": body * np.clip((hu - BONE_HU) / (DENSE_HU - BONE_HU), 0, 1),
        "solid": _mean_around(solid, DEEP_MM, spacing_mm) > 0.999,
        "lungs": _behind(body) & (smooth > LUNG_HU[0]) & (smooth < LUNG_HU[1]),
        "liver": liver,
    }
    voxel_ml = math.prod(spacing_mm) / 1000
    body_ml = float(body.sum()) * voxel_ml
    if body_ml < LEAST_ML["body"]:
        return None
    places = {
        name: _middle(weight, spacing_mm)
        for name, weight in weights.items()
        if weight.sum() * voxel_ml >= min(LEAST_ML[name], LEAST_SHARE * body_ml)
    }

    def away(name: str, axis: int, unit_mm: float = 1) -> float | None:
        if name not in places:
            return None
        return round(float(places[name][axis] - places["body"][axis]) / unit_mm, 3)

    bone = [away("bone", 0), away("bone", 1)]
    return {
        "cut": [_cut(body, 0, 1), _cut(body, 1, 1), _cut(body, 2, math.ceil(PADDED_MM / spacing_mm[2]))],
        "wide": round(_spread(body, 0, spacing_mm) / _spread(body, 1, spacing_mm), 3),
        "bone_mm": None if "bone" not in places else bone,
        "solid_right_mm": away("solid", 0),
        "liver_right_mm": away("liver", 0),
        "lungs_above": away("lungs", 2, image.shape[2] * spacing_mm[2]),
    }


def lying(anatomy: Mapping[str, Any] | None) -> Iterator[str]:
    """Flags for a body that does not lie as the header says; by a label, or else by solid tissue."""
    if anatomy is None:
        return
    x_cut, y_cut, z_cut = anatomy["cut"]
    right, front = anatomy["bone_mm"] or (0, -IN_FRONT_MM)
    stands = z_cut < WHOLE and max(x_cut, y_cut) > CUT
    narrow = max(x_cut, y_cut) < WHOLE and anatomy["wide"] < NARROW
    if stands or narrow or (abs(front) < IN_FRONT_MM and abs(right) > ASIDE_MM):
        yield "lies-across"
        return  # what is right, front and up here is anybody's guess
    if front > IN_FRONT_MM:
        yield "spine-in-front"
    liver, solid = anatomy["liver_right_mm"], anatomy["solid_right_mm"]
    if (solid or 0) < -SOLID_LEFT_MM if liver is None else liver < -LIVER_LEFT_MM:
        yield "liver-on-the-left"
    if (anatomy["lungs_above"] or 0) < -LUNGS_BELOW:
        yield "lungs-below"


def _profile(weight: Coarse, axis: int) -> Float64[np.ndarray, " n"]:
    """How much there is in each plane across an axis."""
    profile: Float64[np.ndarray, " n"] = weight.sum(axis=tuple({0, 1, 2} - {axis}), dtype=np.float64)
    return profile


def _middle(weight: Coarse, spacing_mm: Steps) -> list[float]:
    """In mm from the first voxel."""
    profiles = [_profile(weight, axis) for axis in range(3)]
    return [
        float(profile @ np.arange(len(profile)) / profile.sum() * mm)
        for profile, mm in zip(profiles, spacing_mm, strict=True)
    ]


def _spread(weight: Coarse, axis: int, spacing_mm: Steps) -> float:
    """Standard deviation along an axis in mm, at least that of one voxel."""
    profile = _profile(weight, axis)
    off = np.arange(len(profile)) - _middle(weight, (1, 1, 1))[axis]
    return math.sqrt(profile @ off**2 / profile.sum() + 1 / 12) * spacing_mm[axis]


def _cut(body: Mask, axis: int, planes: int) -> float:
    profile = _profile(body, axis)
    return round(float(min(profile[:planes].max(), profile[-planes:].max()) / profile.max()), 3)


def _mean_around(
    values: Coarse, half_mm: float, spacing_mm: Steps, axes: tuple[int, ...] = (0, 1, 2)
) -> Float32[np.ndarray, "x y z"]:
    """Means over boxes; beyond the scan lies what is at its edge."""
    means = values.astype(np.float32)
    for axis in axes:
        half = max(1, round(half_mm / spacing_mm[axis]))
        padded = np.pad(means, [(half + 1, half) if k == axis else (0, 0) for k in range(3)], mode="edge")
        sums = padded.cumsum(axis, out=padded).swapaxes(0, axis)
        means = (sums[2 * half + 1 :] - sums[: -2 * half - 1]).swapaxes(0, axis)
        means /= 2 * half + 1
    return means


def _behind(body: Mask) -> Mask:
    """What has body on all four sides, in the half of each plane where gas in bowel does not rise to."""
    inside = ~body
    for axis in (0, 1):
        inside &= np.maximum.accumulate(body, axis)
        inside &= np.flip(np.maximum.accumulate(np.flip(body, axis), axis), axis)
    middle = math.ceil(_middle(body, (1, 1, 1))[1]) if body.any() else 0
    inside[:, middle:] = False
    return inside
