"""The gate on a raw NIfTI header: field by field, before any library sees the bytes.

Readers in common use accept NaN spacings, negative sizes and files cut short, and a 71-byte file may claim
16 GB.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from liverseg_core.arrays import Affine, Shape, Spacing
from liverseg_core.errors import LiversegError
from liverseg_core.volumes.geometry import MAX_VOXELS, Grid

DTYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
SPACING_MM = (0.01, 100.0)
MAX_EXTENSION = 1 << 26
MAX_SHEAR = 0.01
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

    def with_spacing(self, spacing_mm: Spacing) -> "NiftiHeader":
        """This header at another spacing along its stored axes: directions, origin and `raw` stay."""
        affine = self.affine.copy()
        affine[:3, :3] *= np.divide(spacing_mm, self.grid.spacing_mm)
        return replace(self, affine=affine, flags=(*self.flags, "spacing-overridden"))

    @property
    def total_bytes(self) -> int:
        """Exact length of the inflated file."""
        return self.offset + int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def parse_header(raw: bytes, name: str) -> NiftiHeader:
    """Check a raw NIfTI-1 or NIfTI-2 header, field by field, and keep what reading needs.

    Raises:
        LiversegError: LS312 to LS316, as `decode`.
    """
    fields = _checked_start(raw, name)
    shape = _shape(fields, name)
    code = int(fields["datatype"])
    if code not in DTYPES:
        what = f"{name}: voxel type {code} ({nib.nifti1.data_type_codes.label.get(code, 'unknown')})"
        raise LiversegError("LS316", what, "real integers or floats of 8 to 64 bits", "Convert the file")
    dtype = np.dtype(fields.endianness + DTYPES[code])
    offset = float(fields["vox_offset"])
    if not fields.sizeof_hdr <= offset <= fields.sizeof_hdr + MAX_EXTENSION:
        what = f"{name}: voxels begin at byte {offset}"
        raise LiversegError("LS312", what, "an offset just behind the header", "Write the file again")
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 or not np.isfinite(slope):
        slope, intercept = 1.0, 0.0  # the standard's own meaning of slope 0, and nibabel's of NaN
    affine, flags = _affine(fields, name)
    return NiftiHeader(shape, dtype, affine, int(offset), slope, intercept, flags, raw[: fields.sizeof_hdr])


def header_kind(raw: bytes) -> type[nib.Nifti1Header]:
    """nibabel's class for a header of this length."""
    kind: type[nib.Nifti1Header] = nib.Nifti2Header
    return nib.Nifti1Header if len(raw) == nib.Nifti1Header.sizeof_hdr else kind


def _checked_start(raw: bytes, name: str) -> nib.Nifti1Header:
    """The header of a single-file NIfTI, whatever its version and byte order."""
    size = {raw[:4], raw[3::-1]} & {struct.pack("<i", 348), struct.pack("<i", 540)}
    kind = nib.Nifti2Header if struct.pack("<i", 540) in size else nib.Nifti1Header
    if not size or len(raw) < kind.sizeof_hdr:
        looks = next((text for start, text in LOOKALIKES if raw.lstrip().startswith(start)), None)
        looks = "a DICOM file" if raw[128:132] == b"DICM" else looks or f"{len(raw)} bytes" * (len(raw) < 348)
        what = f"{name} is not NIfTI" + (f"; it seems to be {looks}" if looks else "")
        raise LiversegError("LS312", what, "a NIfTI-1 or NIfTI-2 file", "Replace the file")
    header = kind(raw[: kind.sizeof_hdr], check=False)
    if bytes(header["magic"])[:3] != kind.single_magic[:3]:
        what = f"{name} has the magic of a header without voxels ({bytes(header['magic'])[:3]!r})"
        raise LiversegError("LS312", what, "single-file NIfTI", "Join .hdr and .img into one .nii.gz")
    return header


def _shape(header: nib.Nifti1Header, name: str) -> Shape:
    dim = [int(size) for size in header["dim"]]
    sizes = dim[1 : dim[0] + 1] if 1 <= dim[0] <= 7 else []
    if len(sizes) < 3 or min(sizes) < 1 or max(sizes[3:], default=1) > 1 or math.prod(sizes[:3]) > MAX_VOXELS:
        raise LiversegError(
            "LS313",
            f"{name}: dimensions {dim[0]}, sizes {sizes or dim[1:]}",
            f"three positive sizes, at most {MAX_VOXELS} voxels",
            "Export one 3-D volume a file",
        )
    return sizes[0], sizes[1], sizes[2]


def _affine(header: nib.Nifti1Header, name: str) -> tuple[Affine, tuple[str, ...]]:
    try:
        affine = np.asarray(header.get_best_affine(), np.float64)
    except (ValueError, HeaderDataError) as error:
        raise LiversegError("LS315", f"{name}: {error}", "a valid qform or sform", REMEDY_HEADER) from None
    if not np.isfinite(affine).all():
        raise LiversegError(
            "LS315", f"{name}: the affine has NaN or infinity", "finite numbers", REMEDY_HEADER
        )
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if int(header["sform_code"]) <= 0:  # then the affine is made of these, and a sign would mirror it
        spacing = spacing * np.sign(header["pixdim"][1:4])
    if not np.all((spacing >= SPACING_MM[0]) & (spacing <= SPACING_MM[1])):
        allowed = f"{SPACING_MM[0]} to {SPACING_MM[1]} mm"
        raise LiversegError("LS314", f"{name}: spacing {spacing} mm", allowed, REMEDY_HEADER)
    cosines = affine[:3, :3] / spacing
    if np.abs(cosines.T @ cosines - np.eye(3)).max() > MAX_SHEAR:
        what = f"{name}: the affine shears the axes"
        raise LiversegError(
            "LS315", what, "perpendicular axes", "Resample the scan onto a rectangular grid first"
        )
    return affine, tuple(_flags(header, affine))


def _flags(header: nib.Nifti1Header, affine: Affine) -> Iterator[str]:
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    if sform <= 0 and qform <= 0:
        yield "no-orientation"
    if np.array_equal(affine[:3, :3], np.eye(3)):
        yield "identity-affine"
    if sform > 0 and qform > 0:
        try:
            agrees = np.allclose(header.get_qform(), affine, atol=0.01)
        except (ValueError, HeaderDataError):
            agrees = False
        if not agrees:
            yield "qform-disagrees"
