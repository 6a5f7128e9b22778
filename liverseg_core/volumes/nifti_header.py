"""The gate on a raw NIfTI header: field by field, before any library sees the bytes.

Readers in common use accept NaN spacings, negative sizes and files cut short, and a 71-byte file may claim
16 GB.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from liverseg_core.arrays import Affine, Shape, Spacing
from liverseg_core.errors import LiversegError
from liverseg_core.volumes.geometry import MAX_VOXELS, Grid, directions
from liverseg_core.volumes.nifti_fields import LAYOUTS, OTHER_TYPES, TYPES, Layout, Raw, best_affine, qform

SPACING_MM = (0.01, 100.0)
MAX_EXTENSION = 1 << 26
MAX_SHEAR = 0.01
UNIT = 1e-4
"""How far from 0 or 1 a number of an affine may be that was one of them before it was rounded."""
REMEDY_HEADER = "Correct the header, or leave the case out"

LOOKALIKES = (
    (b"version https://git-lfs", "a git-lfs pointer"),
    (b"<", "a web page"),
    (b"\x1f\x8b", "gzip inside gzip"),
    (b"PK\x03\x04", "a zip archive"),
)


@dataclass(frozen=True)
class NiftiHeader:
    """What the gate let through.

    Args:
        shape: Voxels along the stored axes.
        dtype: Stored type with its byte order.
        affine: Stored voxel index → RAS+ mm, as nibabel has it (sform, else qform, else spacing alone).
        offset: Where voxels begin in the inflated file, in bytes.
        slope: Stored value × slope + intercept = HU.
        intercept: See slope.
        flags: Oddities that a data report should name.
        raw: The header's own bytes, to write a result that looks like its source.
    """

    shape: Shape
    dtype: np.dtype[np.generic]
    affine: Affine
    offset: int
    slope: float
    intercept: float
    flags: tuple[str, ...]
    raw: bytes

    @property
    def grid(self) -> Grid:
        """The stored grid."""
        return Grid(self.shape, self.affine)

    def corrected(self, spacing_mm: Spacing | None, axes: str | None) -> "NiftiHeader":
        """This header where somebody knows better, without the doubts that this ends; origin and `raw` stay.

        Args:
            spacing_mm: Along the stored axes, or None: as it is.
            axes: Where the stored axes point, such as LPS, or None: as they do.
        """
        affine, settled, told = self.affine.copy(), set[str](), []
        if axes:
            affine[:3, :3] = directions(axes) * self.grid.spacing_mm
            settled |= {"no-orientation", "qform-disagrees"}
            told.append("axes-overridden")
        if spacing_mm:
            affine[:3, :3] *= np.divide(spacing_mm, self.grid.spacing_mm)
            settled |= {"identity-affine", "pixdim-disagrees"}
            told.append("spacing-overridden")
        open_still = [flag for flag in self.flags if flag not in settled]
        return replace(self, affine=affine, flags=(*open_still, *told))

    @property
    def total_bytes(self) -> int:
        """Exact length of the inflated file."""
        return self.offset + int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def parse_header(raw: bytes, name: str) -> NiftiHeader:
    """Check a raw NIfTI-1 or NIfTI-2 header, field by field, and keep what reading needs.

    Raises:
        LiversegError: LS312 to LS316, as `decode`.
    """
    layout = _layout(raw, name)
    fields, order = layout.fields(raw[: layout.size])
    if bytes(fields["magic"])[:3] != layout.magic:
        what = f"{name} has the magic of a header without voxels ({bytes(fields['magic'])[:3]!r})"
        raise LiversegError("LS312", what, "single-file NIfTI", "Join .hdr and .img into one .nii.gz")
    shape = _shape(fields, name)
    code = int(fields["datatype"])
    if code not in TYPES:
        what = f"{name}: voxel type {code} ({OTHER_TYPES.get(code, 'unknown')})"
        raise LiversegError("LS316", what, "real integers or floats of 8 to 64 bits", "Convert the file")
    dtype = np.dtype(order + TYPES[code])
    offset = float(fields["vox_offset"])
    if not layout.size <= offset <= layout.size + MAX_EXTENSION:
        what = f"{name}: voxels begin at byte {offset}"
        raise LiversegError("LS312", what, "an offset just behind the header", "Write the file again")
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 or not np.isfinite(slope):
        slope, intercept = 1.0, 0.0  # the standard's own meaning of slope 0, and nibabel's of NaN
    affine, flags = _affine(fields, layout, name)
    return NiftiHeader(shape, dtype, affine, int(offset), slope, intercept, flags, raw[: layout.size])


def _layout(raw: bytes, name: str) -> Layout:
    """The version of a NIfTI header, in either byte order."""
    size = {raw[:4], raw[3::-1]} & {struct.pack("<i", 348), struct.pack("<i", 540)}
    layout = LAYOUTS[540 if struct.pack("<i", 540) in size else 348]
    if not size or len(raw) < layout.size:
        looks = next((text for start, text in LOOKALIKES if raw.lstrip().startswith(start)), None)
        looks = "a DICOM file" if raw[128:132] == b"DICM" else looks or f"{len(raw)} bytes" * (len(raw) < 348)
        what = f"{name} is not NIfTI" + (f"; it seems to be {looks}" if looks else "")
        raise LiversegError("LS312", what, "a NIfTI-1 or NIfTI-2 file", "Replace the file")
    return layout


def _shape(fields: Raw, name: str) -> Shape:
    dim = [int(size) for size in fields["dim"]]
    sizes = dim[1 : dim[0] + 1] if 1 <= dim[0] <= 7 else []
    if len(sizes) < 3 or min(sizes) < 1 or max(sizes[3:], default=1) > 1 or math.prod(sizes[:3]) > MAX_VOXELS:
        raise LiversegError(
            "LS313",
            f"{name}: dimensions {dim[0]}, sizes {sizes or dim[1:]}",
            f"three positive sizes, at most {MAX_VOXELS} voxels",
            "Export one 3-D volume a file",
        )
    return sizes[0], sizes[1], sizes[2]


def _affine(fields: Raw, layout: Layout, name: str) -> tuple[Affine, tuple[str, ...]]:
    try:
        affine = best_affine(fields, layout)
    except ValueError as error:
        raise LiversegError("LS315", f"{name}: {error}", "a valid qform or sform", REMEDY_HEADER) from None
    if not np.isfinite(affine).all():
        raise LiversegError(
            "LS315", f"{name}: the affine has NaN or infinity", "finite numbers", REMEDY_HEADER
        )
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if int(fields["sform_code"]) <= 0:  # then the affine is made of these, and a sign would mirror it
        spacing = spacing * np.sign(fields["pixdim"][1:4])
    if not np.all((spacing >= SPACING_MM[0]) & (spacing <= SPACING_MM[1])):
        allowed = f"{SPACING_MM[0]} to {SPACING_MM[1]} mm"
        raise LiversegError("LS314", f"{name}: spacing {spacing} mm", allowed, REMEDY_HEADER)
    cosines = affine[:3, :3] / spacing
    if np.abs(cosines.T @ cosines - np.eye(3)).max() > MAX_SHEAR:
        what = f"{name}: the affine shears the axes"
        raise LiversegError(
            "LS315", what, "perpendicular axes", "Resample the scan onto a rectangular grid first"
        )
    return affine, tuple(_flags(fields, layout, affine))


def _flags(fields: Raw, layout: Layout, affine: Affine) -> Iterator[str]:
    sform, quaternion = int(fields["sform_code"]), int(fields["qform_code"])
    if sform <= 0 and quaternion <= 0:
        yield "no-orientation"
    sizes = np.abs(affine[:3, :3])
    if np.isclose(sizes, np.rint(sizes), rtol=0, atol=UNIT).all() and np.allclose(sizes.sum(axis=0), 1):
        yield "identity-affine"
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.allclose(np.abs(fields["pixdim"][1:4]), spacing, rtol=0.01, atol=0):
        yield "pixdim-disagrees"
    if sform > 0 and quaternion > 0:
        try:
            agrees = np.allclose(qform(fields, layout), affine, atol=0.01)
        except ValueError:
            agrees = False
        if not agrees:
            yield "qform-disagrees"
