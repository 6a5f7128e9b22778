"""The gate on a slice's tags: plain numbers, before anything else reads them, or an error naming the field.

What pydicom hands out for one tag depends on the file: a number, a list, text, bytes or an exception. No
message holds a value, since any tag may hold what names a patient.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import PersonName

from liverseg_core.errors import LiversegError
from liverseg_core.volumes.nifti_header import SPACING_MM

NEEDED = (
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
)
"""All that `slice_header` looks at."""
UID_LIKE = re.compile(r"[0-9][0-9.]{0,63}")
HU = ("", "HU", "US", "UNSPECIFIED")
"""Rescale types of a CT in HU: left out, or unspecified, which for CT Image Storage is HU."""
OTHER_UNITS = ("HU_MOD", "MGML", "Z_EFF", "ED", "EDW", "PCT", "OD")
COUNTED = {1: "a number", 2: "two numbers", 3: "three numbers", 6: "six numbers"}
FARTHEST_MM = 1e5
LARGEST = 1e6
AT_RIGHT_ANGLES = 0.01
"""How far two directions' lengths may be from 1, and their product from 0."""


@dataclass(frozen=True)
class SliceHeader:
    """What the gate let through of one slice.

    Args:
        uid: Its SOPInstanceUID, "" where it says none.
        series: Its SeriesInstanceUID, "" where it says none.
        study: Its StudyInstanceUID, "" where it says none.
        frame: Its FrameOfReferenceUID, "" where it says none.
        position: Of its first voxel, LPS+ mm.
        across: Unit vector of a row's direction, LPS+.
        down: Of a column's.
        spacing_mm: Between rows, and between columns.
        rows: Their number.
        columns: Their number.
        bits: That a stored voxel takes.
        scale: Stored value × the first + the second = HU.
        padding: First and last stored value that are no measurement.
    """

    uid: str
    series: str
    study: str
    frame: str
    position: tuple[float, ...]
    across: tuple[float, ...]
    down: tuple[float, ...]
    spacing_mm: tuple[float, ...]
    rows: int
    columns: int
    bits: int
    scale: tuple[float, float]
    padding: tuple[int, int] | None


def slice_header(dataset: Dataset, name: str) -> SliceHeader:
    """Check the tags of a slice, one by one, and keep what reading needs.

    Args:
        dataset: With `NEEDED`, as far as the file has them.
        name: The file's.

    Raises:
        LiversegError: LS354 where a tag is missing or can't be used, LS318 where voxels are not HU.
    """
    tags = _Tags(dataset, name)
    _check_units(tags)
    across, down = _directions(tags)
    if tags.whole("SamplesPerPixel", 1, 1, absent=1) != 1:
        raise tags.error("SamplesPerPixel", "1")
    bits = tags.whole("BitsAllocated", 8, 32)
    if bits not in (8, 16, 32):
        raise tags.error("BitsAllocated", "8, 16 or 32")
    slope = tags.numbers("RescaleSlope", 1, -LARGEST, LARGEST)[0]
    if slope == 0:
        raise tags.error("RescaleSlope", "other than 0")
    return SliceHeader(
        uid=tags.uid("SOPInstanceUID"),
        series=tags.text("SeriesInstanceUID"),
        study=tags.uid("StudyInstanceUID"),
        frame=tags.uid("FrameOfReferenceUID"),
        position=tags.numbers("ImagePositionPatient", 3, -FARTHEST_MM, FARTHEST_MM),
        across=across,
        down=down,
        spacing_mm=tags.numbers("PixelSpacing", 2, *SPACING_MM),
        rows=tags.whole("Rows", 1, 65535),
        columns=tags.whole("Columns", 1, 65535),
        bits=bits,
        scale=(slope, tags.numbers("RescaleIntercept", 1, -LARGEST, LARGEST)[0]),
        padding=_padding(tags, tags.whole("BitsStored", 1, bits)),
    )


def words(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """A tag's texts, however many; () where it is absent or no text."""
    value = _value(dataset, keyword)
    values = value if isinstance(value, MultiValue | list | tuple) else [value]
    try:
        return tuple(str(one).strip(" \0") for one in values if isinstance(one, str | PersonName))
    except (LookupError, ValueError):  # a name is decoded only now
        return ()


@dataclass(frozen=True)
class _Tags:
    """A slice's tags, each asked for as what it should be."""

    dataset: Dataset
    name: str

    def error(self, keyword: str, allowed: str) -> LiversegError:
        absent = _is_empty(_value(self.dataset, keyword))
        what = f"does not say its {keyword}" if absent else f"its {keyword} is not {allowed}"
        return LiversegError(
            "LS354",
            f"{self.name}{' ' if absent else ': '}{what}",
            "slices whose tags say what the volume is, as the standard has them",
            "Correct the tag, leave the file out, or export the series again",
        )

    def numbers(self, keyword: str, count: int, low: float, high: float) -> tuple[float, ...]:
        value = _value(self.dataset, keyword)
        values = value if isinstance(value, MultiValue | list | tuple) else [value]
        try:
            found = tuple(float(one) for one in values if isinstance(one, Real | Decimal))
        except (OverflowError, ValueError):
            found = ()
        if len(found) != count or len(values) != count or not np.isfinite(found).all():
            raise self.error(keyword, COUNTED[count])
        if not all(low <= number <= high for number in found):
            raise self.error(keyword, f"{COUNTED[count]} from {low:g} to {high:g}")
        return found

    def whole(self, keyword: str, low: int, high: int, absent: int | None = None) -> int:
        if absent is not None and _is_empty(_value(self.dataset, keyword)):
            return absent
        (found,) = self.numbers(keyword, 1, low, high)
        if not found.is_integer():
            raise self.error(keyword, "a whole number")
        return int(found)

    def text(self, keyword: str) -> str:
        found = words(self.dataset, keyword)
        return found[0] if len(found) == 1 else ""

    def uid(self, keyword: str) -> str:
        found = self.text(keyword)
        return found if UID_LIKE.fullmatch(found) else ""


def _check_units(tags: _Tags) -> None:
    """What is stored at other energies, as densities or as atomic numbers looks like HU and is none."""
    if _is_empty(_value(tags.dataset, "RescaleType")):
        return
    kind = tags.text("RescaleType").upper()
    if kind not in HU or len(words(tags.dataset, "RescaleType")) != 1:
        unit = f"{kind}, not HU" if kind in OTHER_UNITS else "not HU"
        raise LiversegError(
            "LS318", f"{tags.name}: its RescaleType is {unit}", "a CT in HU", "Take the series that is in HU"
        )


def _directions(tags: _Tags) -> tuple[tuple[float, ...], tuple[float, ...]]:
    six = np.reshape(tags.numbers("ImageOrientationPatient", 6, -2, 2), (2, 3))
    lengths = np.linalg.norm(six, axis=1)
    if abs(lengths - 1).max() > AT_RIGHT_ANGLES or abs(six[0] @ six[1]) > AT_RIGHT_ANGLES:
        raise tags.error("ImageOrientationPatient", "two directions at right angles")
    across, down = six / lengths[:, None]
    return tuple(across.tolist()), tuple(down.tolist())


def _padding(tags: _Tags, bits: int) -> tuple[int, int] | None:
    """The stored values that are no measurement; writers disagree on their sign and on their bits."""
    signed = tags.whole("PixelRepresentation", 0, 1)
    if _is_empty(_value(tags.dataset, "PixelPaddingValue")):
        return None
    ends: list[int] = []
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        if not _is_empty(_value(tags.dataset, keyword)):
            stored = tags.whole(keyword, -(2**31), 2**32 - 1) % 2**bits
            ends.append(stored - 2**bits if signed and stored >= 2 ** (bits - 1) else stored)
    return min(ends), max(ends)


def _value(dataset: Dataset, keyword: str) -> Any:
    """What pydicom makes of a tag: None where it is absent, NotImplemented where it makes nothing of it."""
    try:
        return dataset.get(keyword)
    except MemoryError:
        raise
    except Exception:  # of whatever kind: from struct.error to AttributeError
        return NotImplemented


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, Sequence) and len(value) == 0)
