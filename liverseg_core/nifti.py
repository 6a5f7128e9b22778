"""NIfTI in: a gate on the raw header, a checked inflate, the volume as stored.

The gate comes before any library sees the bytes: readers in common use accept NaN spacings, negative sizes
and files cut short, and a 71-byte file may claim 16 GB.
"""

import itertools
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip, igzip_lib
from jaxtyping import Shaped
from nibabel.spatialimages import HeaderDataError

from liverseg_core.arrays import Affine, Label, Shape
from liverseg_core.errors import LiversegError
from liverseg_core.geometry import MAX_VOXELS, Grid

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
HEADER_BYTES = 1024
"""Enough of a file to hold either header."""
PIECE = 1 << 18
"""Compressed bytes inflated at once; their inflated size is at most a thousandfold."""
MAX_INFLATION = 1032
"""Deflate packs no more than this into a byte."""
MAX_EXTENSION = 1 << 26
MAX_SHEAR = 0.01
GZIP = b"\x1f\x8b"
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

    @property
    def total_bytes(self) -> int:
        """Exact length of the inflated file."""
        return self.offset + int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True)
class Volume:
    """A scan or label as stored: axes, type and values of the file; `header.affine` says where it is."""

    data: Shaped[np.ndarray, "_ _ _"]
    header: NiftiHeader
    name: str


def read_nifti(path: Path) -> Volume:
    """Read a `.nii` or `.nii.gz` whole.

    Raises:
        LiversegError: LS301 where there is no such file; LS311 to LS317 for what `decode` refuses.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        what = f"{path}: {error.strerror}"
        raise LiversegError("LS301", what, "a readable NIfTI file", "Check the path") from None
    return decode(data, path.name)


def decode(data: bytes, name: str) -> Volume:
    """Inflate and gate a NIfTI file's bytes.

    Args:
        data: The file, gzipped or not.
        name: What to call it in errors.

    Raises:
        LiversegError: LS311 damaged gzip, LS312 not NIfTI, LS313 sizes, LS314 spacing, LS315 affine,
            LS316 voxel type, LS317 length.
    """
    pieces = inflate(data, name) if data[:2] == GZIP else iter([data])
    start = b""
    while len(start) < HEADER_BYTES and (piece := next(pieces, None)) is not None:
        start += piece
    header = parse_header(start, name)
    most = len(data) * MAX_INFLATION if data[:2] == GZIP else len(data)
    if header.total_bytes > most:  # before memory is set aside for what can't be there
        raise _length(name, header, f"at most {most} bytes")
    content = np.empty(header.total_bytes, np.uint8)
    filled = 0
    for piece in itertools.chain([start], pieces):
        if filled + len(piece) > header.total_bytes:
            raise _length(name, header, f"more than {header.total_bytes} bytes")
        content[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
        filled += len(piece)
    if filled < header.total_bytes:
        raise _length(name, header, f"{filled} bytes")
    voxels = content[header.offset :].view(header.dtype).reshape(header.shape, order="F")
    return Volume(voxels, header, name)


def inflate(data: bytes, name: str) -> Iterator[bytes]:
    """Inflate a gzip file piece by piece, all its members, each with its CRC and length checked.

    Raises:
        LiversegError: LS311 when a member is damaged, cut short or followed by anything but zeros.
    """
    view, at = memoryview(data), 0
    while bytes(view[at : at + 2]) == GZIP:
        inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        while not inflater.eof:
            if at == len(view):
                raise _damaged(name, "its end is missing")
            piece = view[at : at + PIECE]
            try:
                yield inflater.decompress(piece)
            except igzip_lib.error as error:  # type: ignore[misc]  # its stub says object
                raise _damaged(name, str(error)) from None
            at += len(piece) - len(inflater.unused_data)
    if np.frombuffer(view[at:], np.uint8).any():
        raise _damaged(name, f"{len(view) - at} stray bytes behind its end")


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


def as_label(volume: Volume) -> Label:
    """The volume as uint8 classes, on its stored axes.

    Raises:
        LiversegError: LS320 for values other than 0, 1 and 2.
    """
    data = volume.data
    if volume.header.slope != 1 or volume.header.intercept != 0:
        data = data * volume.header.slope + volume.header.intercept
    label = (
        data.astype(np.uint8)
        if data.dtype.kind in "iu"
        else np.rint(np.clip(np.nan_to_num(data, nan=255), 0, 255)).astype(np.uint8)
    )
    if label.max(initial=0) > 2 or not np.array_equal(label, data):
        odd = np.setdiff1d(np.unique(data), [0, 1, 2])[:5]
        what = f"{volume.name}: label values {', '.join(f'{value:.6g}' for value in odd)}"
        raise LiversegError(
            "LS320", what, "0 background, 1 liver, 2 tumour", "Map the labels to these values"
        )
    return label


def as_hu(volume: Volume, plane: Shaped[np.ndarray, "y x"]) -> Shaped[np.ndarray, "y x"]:
    """A plane of stored values as HU, in this machine's byte order.

    Raises:
        LiversegError: LS318 for NaN, infinity or values outside int16.
    """
    header = volume.header
    if plane.dtype.kind == "i" and plane.dtype.itemsize <= 2 and header.slope == 1 and header.intercept == 0:
        return plane.astype(plane.dtype.newbyteorder("="), copy=False)  # numba takes no other order
    with np.errstate(over="ignore", invalid="ignore"):
        hu = (plane * header.slope + header.intercept).astype(np.float32)
    low, high = float(hu.min()), float(hu.max())
    limits = np.iinfo(np.int16)
    if not (low >= limits.min and high <= limits.max):
        what = f"{volume.name}: voxel values from {low:.6g} to {high:.6g}"
        raise LiversegError(
            "LS318", what, "finite HU within int16", "Check the scan's values and its scl_slope"
        )
    return hu


def write_label(path: Path, label: Label, like: NiftiHeader) -> None:
    """Write a label volume on its stored axes, as gzipped NIfTI with the geometry fields of `like`.

    The bytes depend on the arguments alone: no time stamp, and no text of the source's.
    """
    kind = _kind(like.raw)
    header = kind(like.raw, check=False)
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    for field in {"descrip", "data_type", "db_name", "aux_file", "intent_name"} & set(header.keys()):
        header[field] = b""
    image = nib.Nifti1Image if kind is nib.Nifti1Header else nib.Nifti2Image
    path.write_bytes(igzip.compress(image(label, None, header).to_bytes(), mtime=0))


def _kind(raw: bytes) -> type[nib.Nifti1Header]:
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


def _damaged(name: str, trouble: str) -> LiversegError:
    return LiversegError(
        "LS311", f"{name}: damaged gzip ({trouble})", "an intact file", "Copy the file again"
    )


def _length(name: str, header: NiftiHeader, found: str) -> LiversegError:
    what = f"{name}: {found} where {header.shape} voxels of {header.dtype} need {header.total_bytes}"
    return LiversegError("LS317", what, "exactly that length", "Copy or export the file again")
