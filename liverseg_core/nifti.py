"""NIfTI files: a checked inflate, the volume as stored, labels written back."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip, igzip_lib
from jaxtyping import Shaped

from liverseg_core.arrays import Label
from liverseg_core.errors import LiversegError
from liverseg_core.nifti_header import NiftiHeader, header_kind, parse_header

HEADER_BYTES = 1024
"""Enough of a file to hold either header."""
PIECE = 1 << 18
"""Compressed bytes inflated at once; their inflated size is at most a thousandfold."""
MAX_INFLATION = 1032
"""Deflate packs no more than this into a byte."""
GZIP = b"\x1f\x8b"


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
    kind = header_kind(like.raw)
    header = kind(like.raw, check=False)
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    for field in {"descrip", "data_type", "db_name", "aux_file", "intent_name"} & set(header.keys()):
        header[field] = b""
    image = nib.Nifti1Image if kind is nib.Nifti1Header else nib.Nifti2Image
    path.write_bytes(igzip.compress(image(label, None, header).to_bytes(), mtime=0))


def _damaged(name: str, trouble: str) -> LiversegError:
    return LiversegError(
        "LS311", f"{name}: damaged gzip ({trouble})", "an intact file", "Copy the file again"
    )


def _length(name: str, header: NiftiHeader, found: str) -> LiversegError:
    what = f"{name}: {found} where {header.shape} voxels of {header.dtype} need {header.total_bytes}"
    return LiversegError("LS317", what, "exactly that length", "Copy or export the file again")
