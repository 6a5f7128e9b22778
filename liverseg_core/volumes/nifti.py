"""NIfTI files: slices as they inflate, or the volume whole, as stored; labels written back."""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from isal import igzip
from jaxtyping import Shaped, UInt8

from liverseg_core.arrays import Label
from liverseg_core.errors import LiversegError
from liverseg_core.volumes.inflate import MAX_INFLATION, PIECE, Inflated
from liverseg_core.volumes.nifti_fields import header_like
from liverseg_core.volumes.nifti_header import NiftiHeader, parse_header

HEADER_BYTES = 348
NIFTI2_HEADER_BYTES = 540


@dataclass(frozen=True)
class Volume:
    """A scan or label as stored: axes, type and values of the file; `header.affine` says where it is."""

    data: Shaped[np.ndarray, "_ _ _"]
    header: NiftiHeader
    name: str


@dataclass(frozen=True)
class Scan:
    """A scan or label opened: its header read, its voxels still to come, once."""

    header: NiftiHeader
    name: str
    content: Inflated

    def slices(self) -> Iterator[Shaped[np.ndarray, "_ _"]]:
        """The slices along the last stored axis, in order, each indexed (second, first) stored axis.

        Raises:
            LiversegError: LS311 damaged gzip, LS317 wrong length; where it ends is checked behind the last.
        """
        first, second, third = self.header.shape
        for _ in range(third):
            stored = np.empty((second, first), self.header.dtype)
            self._fill(stored)
            yield stored
        self._check_end()

    def whole(self) -> Volume:
        """Read all voxels into one array.

        Raises:
            LiversegError: LS311 and LS317, as `slices`.
        """
        stored = np.empty(self.header.shape[::-1], self.header.dtype)
        self._fill(stored)
        self._check_end()
        return Volume(stored.T, self.header, self.name)

    def _fill(self, array: Shaped[np.ndarray, "..."]) -> None:
        if self.content.read_into(array.reshape(-1).view(np.uint8).data) < array.nbytes:
            raise _length(self.name, self.header, "fewer bytes")

    def _check_end(self) -> None:
        if self.content.read(1):
            raise _length(self.name, self.header, f"more than {self.header.total_bytes} bytes")


def open_scan(pieces: Iterable[bytes], size: int, name: str) -> Scan:
    """Read a NIfTI file up to its voxels.

    Args:
        pieces: The file's bytes in order, gzipped or not.
        size: How many bytes they are together.
        name: What to call it in errors.

    Raises:
        LiversegError: LS311 damaged gzip, LS312 not NIfTI, LS313 sizes, LS314 spacing, LS315 affine,
            LS316 voxel type, LS317 length.
    """
    content = Inflated(pieces, name)
    start = content.read(HEADER_BYTES)
    if _is_nifti2(start):
        start += content.read(NIFTI2_HEADER_BYTES - HEADER_BYTES)
    header = parse_header(start, name)
    most = size * MAX_INFLATION if content.gzipped else size
    if header.total_bytes > most:  # before memory is set aside for what can't be there
        raise _length(name, header, f"at most {most} bytes")
    content.read(header.offset - len(start))
    return Scan(header, name, content)


def read_nifti(path: Path) -> Volume:
    """Read a `.nii` or `.nii.gz` whole.

    Raises:
        LiversegError: LS301 where there is no such file; LS311 to LS317 for what `open_scan` refuses.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        what = f"{path}: {error.strerror}"
        raise LiversegError("LS301", what, "a readable NIfTI file", "Check the path") from None
    return decode(data, path.name)


def open_nifti(path: Path) -> Scan:
    """Open a `.nii` or `.nii.gz`, to be inflated as it is read.

    Raises:
        LiversegError: LS301 where there is no such file; LS311 to LS317 for what `open_scan` refuses.
    """
    try:
        return open_scan(_pieces(path), path.stat().st_size, path.name)
    except OSError as error:
        what = f"{path}: {error.strerror}"
        raise LiversegError("LS301", what, "a readable NIfTI file", "Check the path") from None


def decode(data: bytes, name: str) -> Volume:
    """Inflate and gate a NIfTI file's bytes.

    Raises:
        LiversegError: LS311 to LS317, as `open_scan`.
    """
    return open_scan([data], len(data), name).whole()


def as_label(volume: Volume) -> Label:
    """The volume as uint8 classes, on its stored axes.

    Raises:
        LiversegError: LS320 for values other than 0, 1 and 2.
    """
    return as_classes(volume, volume.data)


def as_classes(label: Scan | Volume, stored: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Some of a label's stored values as uint8 classes.

    Raises:
        LiversegError: LS320 for values other than 0, 1 and 2.
    """
    header, data = label.header, stored
    plain = header.slope == 1 and header.intercept == 0
    if plain and data.dtype == np.uint8 and data.max(initial=0) <= 2:
        return data
    if not plain:
        data = data * header.slope + header.intercept
    classes = (
        data.astype(np.uint8)
        if data.dtype.kind in "iu"
        else np.rint(np.clip(np.nan_to_num(data, nan=255), 0, 255)).astype(np.uint8)
    )
    if classes.max(initial=0) > 2 or not np.array_equal(classes, data):
        odd = np.setdiff1d(np.unique(data), [0, 1, 2])[:5]
        what = f"{label.name}: label values {', '.join(f'{value:.6g}' for value in odd)}"
        raise LiversegError(
            "LS320", what, "0 background, 1 liver, 2 tumour", "Map the labels to these values"
        )
    return classes


def as_hu(volume: Scan | Volume, plane: Shaped[np.ndarray, "y x"]) -> Shaped[np.ndarray, "y x"]:
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


def write_label(path: Path, label: Label, like: NiftiHeader, note: str = "") -> None:
    """Write a label volume on its stored axes, as gzipped NIfTI with the geometry fields of `like`.

    The bytes depend on the arguments alone: no time stamp, and no text of the source's.
    """
    header, _ = header_like(like.raw, label.shape, np.uint8, note=note)
    path.write_bytes(igzip.compress(header + label.tobytes("F"), mtime=0))


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def _is_nifti2(start: bytes) -> bool:
    return struct.pack("<i", NIFTI2_HEADER_BYTES) in (start[:4], start[3::-1])


def _length(name: str, header: NiftiHeader, found: str) -> LiversegError:
    what = f"{name}: {found} where {header.shape} voxels of {header.dtype} need {header.total_bytes}"
    return LiversegError("LS317", what, "exactly that length", "Copy or export the file again")
