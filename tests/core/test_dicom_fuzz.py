"""Tags and files of slices that are anything at all: a coded error or plain numbers, and nobody's name.

    LIVERSEG_FUZZ_TAGS=100000 LIVERSEG_FUZZ_SLICES=5000 pytest tests/core/test_dicom_fuzz.py -s

A mutant is made from its number alone, so that one that fails can be made again.
"""

import os
import re
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import write_series
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import RLELossless

from liverseg_core.dicom.files import quiet
from liverseg_core.dicom.gate import NEEDED, SliceHeader, slice_header
from liverseg_core.dicom.seg import ABOUT, about_patient, write_seg
from liverseg_core.dicom.series import read_series
from liverseg_core.errors import LiversegError

TAGS = int(os.environ.get("LIVERSEG_FUZZ_TAGS", "2000"))
FILES = int(os.environ.get("LIVERSEG_FUZZ_SLICES", "150"))
CANARY = "Canary"
VRS = (
    *(
        "AE",
        "AS",
        "AT",
        "CS",
        "DA",
        "DS",
        "DT",
        "FD",
        "FL",
        "IS",
        "LO",
        "LT",
        "OB",
        "OD",
        "OF",
        "OL",
        "OW",
        "PN",
    ),
    *("SH", "SL", "SQ", "SS", "ST", "SV", "TM", "UC", "UI", "UL", "UN", "UR", "US", "UT", "UV", "ZZ"),
)
VALUES = (
    b"", b" ", b"\0", b"0", b"1", b"-1", b"1.5", b"nan", b"inf", b"-1e400", b"1e308", b"1\\1", b"1\\1\\1",
    b"5,357\\5,357", b"1\\\\1", b"\\", b"1\\0\\0\\0\\1\\0", b"0\\0\\0\\0\\0\\0", b"-1024 HU", b"HU", b"Z_EFF",
    b"1.2.3", b"Canary^Patient", b"\xe9Canary\xff", b"\x1b$B;3EDCanary", "山田^太郎=Canary".encode(),
    b"REMOVED", b"1950-01-31", b"20209999", b"\xff\xff", b"\0\x02", b"\x10\0", b"\xff" * 8, b"9" * 400,
    b"1" * 70, b"65536", b"\xfe\xff\x00\xe0\0\0\0\0",
)  # fmt: skip


def sound() -> Dataset:
    """A slice's tags as they should be."""
    tags = Dataset()
    tags.SOPInstanceUID, tags.SeriesInstanceUID, tags.FrameOfReferenceUID = "1.2.3", "1.2", "1.4"
    tags.ImagePositionPatient, tags.ImageOrientationPatient = [0, 0, 5], [1, 0, 0, 0, 1, 0]
    tags.PixelSpacing, tags.Rows, tags.Columns = [0.8, 0.7], 512, 512
    tags.BitsAllocated, tags.BitsStored, tags.PixelRepresentation = 16, 16, 1
    tags.PixelPaddingValue, tags.RescaleSlope, tags.RescaleIntercept = -2000, 1, -1024
    return tags


def mutant(number: int) -> Dataset:
    """Sound tags, but one to three are missing or of any VR and value, as they would come from a file."""
    rng = np.random.default_rng(number)
    tags = sound()
    for keyword in [*rng.choice(NEEDED, int(rng.integers(1, 4)), replace=False), *rng.choice([*ABOUT], 3)]:
        tag = Tag(tag_for_keyword(str(keyword)))
        tags.pop(tag, None)
        if rng.random() < 0.9:
            value = VALUES[int(rng.integers(len(VALUES)))] * int(rng.choice([1, 1, 1, 2, 3]))
            vr = None if rng.random() < 0.3 else VRS[int(rng.integers(len(VRS)))]
            tags._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, vr is None, True)
    return tags


def is_plain(header: SliceHeader) -> bool:
    """Whether all of a header is numbers and UIDs in their range."""
    numbers = [*header.position, *header.across, *header.down, *header.spacing_mm, *header.scale]
    numbers += [header.rows, header.columns, header.bits, *(header.padding or ())]
    return (
        all(type(number) in (int, float) and np.isfinite(number) for number in numbers)
        and min(header.rows, header.columns, *header.spacing_mm) > 0
        and all(type(text) is str for text in (header.uid, header.series, header.study, header.frame))
    )


def is_allowed(about: dict[str, str]) -> bool:
    """Whether a SEG can have these tags of patient and study."""
    return all(
        re.fullmatch(ABOUT[keyword], text) and text.isprintable() and text.encode()[:0] == b""
        for keyword, text in about.items()
    )


def test_any_tags_give_plain_numbers_or_a_coded_error() -> None:
    found, said, started = Counter[str](), list[str](), time.monotonic()
    for number in range(TAGS):
        try:
            with quiet():
                assert is_allowed(about_patient(mutant(number))), f"mutant {number}"
                assert is_plain(slice_header(mutant(number), "IM7")), f"mutant {number}"
            found[""] += 1
        except LiversegError as error:
            found[error.code] += 1
            said.append(str(error))
        except Exception as error:
            raise AssertionError(f"mutant {number}") from error
    print(f"\n{TAGS} in {time.monotonic() - started:.1f} s", dict(found.most_common()))
    assert found.keys() <= {"", "LS354", "LS318"}
    assert all(message[5:].startswith(": IM7") and CANARY not in message for message in said)
    assert min(found[code] for code in ("", "LS354", "LS318")) > TAGS / 100


def damaged(number: int, raw: bytes) -> bytes:
    """A slice's file with flipped bits, other bytes, some left out, or cut."""
    rng = np.random.default_rng(number)
    changed = bytearray(raw)
    end = len(raw) if number % 3 == 0 else min(len(raw), 1200)  # tags more often than voxels
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(end))
        value = VALUES[int(rng.integers(len(VALUES)))]
        match int(rng.integers(10)):
            case 0:
                del changed[at : at + int(rng.integers(1, 9))]
            case 1:
                changed[at:at] = value
            case 2 | 3 | 4:
                changed[at : at + len(value)] = value
            case _:
                changed[at % len(changed)] ^= 1 << int(rng.integers(8))
        if not changed:
            break
    return bytes(changed[: at + 1] if number % 7 == 0 else changed)


def test_any_file_among_slices_is_left_alone_read_or_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing is printed either: what pydicom warns of, it quotes."""
    volume = np.random.default_rng(1).normal(50, 200, (12, 10, 5)).astype(np.int16)
    paths = sorted(write_series(tmp_path, volume, np.diag([-0.8, -0.8, 2.5, 1])))
    packed = pydicom.dcmread(paths[1])
    packed.compress(RLELossless, generate_instance_uid=False)
    packed.save_as(paths[1])
    sources = [path.read_bytes() for path in paths[:3]]
    sources[2] = sources[2][
        sources[2].index(b"\x08\0\x05\0" if b"\x08\0\x05\0" in sources[2] else b"\x08\0\x08\0") :
    ]
    found, said, started = Counter[str](), list[str](), time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(FILES):
            which = number % len(sources)
            paths[which].write_bytes(damaged(number, sources[which]))
            try:
                series = read_series(tmp_path)
                assert series.open().whole().data.shape[2] <= len(paths)
                write_seg(series, tmp_path / ".seg", np.zeros((12, 10, len(series.slices)), np.uint8))
                found[""] += 1
            except LiversegError as error:
                found[error.code] += 1
                said.append(str(error))
            except Exception as error:
                raise AssertionError(f"file {number}") from error
            paths[which].write_bytes(sources[which])
    printed = "".join(capfd.readouterr())
    print(f"\n{FILES} files in {time.monotonic() - started:.1f} s", dict(found.most_common()))
    assert found.keys() <= {"", "LS315", "LS318", "LS353", "LS354", "LS355"}
    assert min(found[code] for code in ("", "LS354", "LS355")) > FILES / 50
    assert printed == ""
    assert CANARY not in "".join(said)
