"""What a file of a folder is: a CT slice, something else, or a slice that is damaged."""

import contextlib
import logging
import re
import struct
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from pydicom import FileDataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from liverseg_core.dicom.gate import NEEDED, SliceHeader, slice_header, words
from liverseg_core.errors import LiversegError

CT = "1.2.840.10008.5.1.4.1.1.2"
"""CT Image Storage: one slice a file."""
KNOWN_AS = ("SOPClassUID", "Modality", "ImageType")
ENDINGS = (".dcm", ".dicom", ".ima")
"""What only DICOM files are called."""
ON_THEIR_WAY = (".gz", ".part", ".tmp", ".download", ".crdownload")
"""Endings that files have besides, until they are there."""
MARK = b"DICM"
PIXELS = {(0x7FE0, 0x0010), (0x7FE0, 0x0008), (0x7FE0, 0x0009)}
UNDEFINED = 0xFFFFFFFF
LOOKALIKES = ((b"<", "a web page"), (b"PK\x03\x04", "a zip archive"), (b"\x1f\x8b", "gzip"))


@dataclass(frozen=True)
class Slice:
    """One file of a series, what its tags say, and how its voxels are packed."""

    path: Path
    header: SliceHeader
    syntax: str


@dataclass(frozen=True)
class Looked:
    """A file that was looked at.

    Args:
        path: Where it is.
        slice: A CT slice; None for all else.
        damage: What is wrong with a file that may be a slice, or "".
        is_dicom: Whether it bears the mark of DICOM.
    """

    path: Path
    slice: Slice | None = None
    damage: str = ""
    is_dicom: bool = False


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Neither pydicom nor highdicom speaks: they quote what they find odd, such as a patient's name."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def slices_among(paths: Iterable[Path]) -> list[Slice]:
    """The CT slices among files; what is no slice is left alone.

    Notes, labels, DICOMDIR, localisers and other DICOM objects are no slices. A file that is not whole may be
    one: where it bears the mark of DICOM, or is named as the slices are.

    Raises:
        LiversegError: LS301 where a file can't be read, LS355 where slices are damaged, naming them; what
            `slice_header` raises.
    """
    named = (path for path in paths if not path.name.startswith(".") and path.name.upper() != "DICOMDIR")
    looked = [look(path) for path in named]
    slices = [one.slice for one in looked if one.slice]
    shapes = {_shape(one.path) for one in slices}
    damaged = [
        f"{one.path.name} ({one.damage})"
        for one in looked
        if one.damage and (one.is_dicom or _shape(one.path).endswith(ENDINGS) or _shape(one.path) in shapes)
    ]
    if damaged:
        more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        raise LiversegError(
            "LS355",
            f"damaged slices: {', '.join(damaged[:5])}{more}",
            "slices that are whole, beside notes and other files that are not named like slices",
            "Copy these files again, or remove them if they are no slices",
        )
    return slices


def look(path: Path) -> Looked:
    """Find out what a file is.

    Raises:
        LiversegError: LS301 where it can't be read; what `slice_header` raises.
    """
    if not path.is_file():
        return Looked(path, damage="a link that leads to no file")
    try:
        with path.open("rb") as file:
            start = file.read(136)
            file.seek(0)
            if not _starts_as_dicom(start):
                return Looked(path, damage=_other(start))
            with quiet():
                return replace(_look(path, file), is_dicom=start[128:132] == MARK)
    except OSError as error:
        what = f"{path}: {error.strerror}"
        raise LiversegError("LS301", what, "a readable file", "Check the path") from None


def read_tags(file: BinaryIO | Path, tags: Iterable[str], *, pixels: bool = False) -> FileDataset:
    """Read some of a DICOM file's tags, whether it has preamble and file meta or not.

    Raises:
        Exception: Of any kind, where it is damaged.
    """
    chosen = [*tags, *(["PixelData"] if pixels else [])]
    found = dcmread(file, stop_before_pixels=not pixels, force=True, specific_tags=chosen)
    if not any(words(found, "SOPInstanceUID")):
        found.SOPInstanceUID = found.file_meta.get("MediaStorageSOPInstanceUID")
    if "TransferSyntaxUID" not in found.file_meta:
        implicit, little = found.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        found.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return found


def _look(path: Path, file: BinaryIO) -> Looked:
    try:
        tags = read_tags(file, (*KNOWN_AS, *NEEDED))
        kind = _class_of(tags)
        stored = _voxel_bytes(file, tags)
    except MemoryError:
        raise
    except Exception:  # pydicom has no one error for a file that it can't read
        return Looked(path, damage="not readable as DICOM")
    if kind not in ("", CT) or "LOCALIZER" in (word.upper() for word in words(tags, "ImageType")):
        return Looked(path)
    if stored == 0:
        return Looked(path, damage="cut short, or without voxels")
    if not kind:
        return Looked(path, damage="does not say what it is")
    header = slice_header(tags, path.name)
    if stored is not None and stored < header.rows * header.columns * header.bits // 8:
        return Looked(path, damage="fewer voxels than rows and columns")
    return Looked(path, Slice(path, header, str(tags.file_meta.TransferSyntaxUID)))


def _class_of(tags: FileDataset) -> str:
    """Its SOP class, or what its file meta or its modality say of it."""
    said = words(tags, "SOPClassUID") or ("",)
    meta = words(tags.file_meta, "MediaStorageSOPClassUID") or ("",)
    return said[0] or meta[0] or (CT if words(tags, "Modality") == ("CT",) else "")


def _voxel_bytes(file: BinaryIO, tags: FileDataset) -> int | None:
    """How many bytes of voxels come behind the tags, None where they are packed, 0 where they are cut."""
    syntax = tags.file_meta.TransferSyntaxUID
    if syntax == DeflatedExplicitVRLittleEndian:
        return None  # inflated as a whole, which fails where it is cut
    implicit, little = tags.original_encoding
    order = "<" if little else ">"
    start = file.read(8 if implicit else 12)
    if len(start) < 8 or struct.unpack_from(f"{order}HH", start) not in PIXELS:
        return 0
    (length,) = struct.unpack(f"{order}I", start[-4:])
    begin = file.tell()
    size = file.seek(0, 2)
    if length == UNDEFINED:
        return None if _frames_are_whole(file, begin, size) else 0
    return length if begin + length <= size else 0


def _frames_are_whole(file: BinaryIO, begin: int, size: int) -> bool:
    """Whether packed frames, item by item, end within the file."""
    at = begin
    while True:
        file.seek(at)
        item = file.read(8)
        if item[:4] != b"\xfe\xff\x00\xe0" or len(item) < 8:
            return begin < at <= size and item[:4] in (b"\xfe\xff\xdd\xe0", b"")
        at += 8 + int.from_bytes(item[4:], "little")


def _starts_as_dicom(start: bytes) -> bool:
    """With a preamble and its mark, or at once with one of the first tags, in either byte order."""
    if start[128:132] == MARK:
        return True
    tags = [struct.unpack(f"{order}HH", start[:4]) for order in "<>"] if len(start) >= 8 else []
    return any(group in (0x0002, 0x0008) and element <= 0x0018 for group, element in tags)


def _other(start: bytes) -> str:
    looks = next((what for mark, what in LOOKALIKES if start.lstrip().startswith(mark)), "not DICOM")
    return looks if start else "0 bytes"


def _shape(path: Path) -> str:
    """A name with its numbers left out: what names of one series share."""
    name = path.name.lower()
    for end in ON_THEIR_WAY:
        name = name.removesuffix(end)
    return re.sub(r"[0-9a-f]*[0-9][0-9a-f]*", "#", name)
