"""Mutated headers and files: a coded error or a usable scan, in bounded time and memory, and nothing else.

    LIVERSEG_FUZZ_HEADERS=200000 LIVERSEG_FUZZ_FILES=5000 pytest tests/core/test_header_fuzz.py -s

A mutant is made from its number alone, so that one that fails can be made again.
"""

import gzip
import os
import struct
import tarfile
import time
import tracemalloc
import zlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import psutil
import pytest

from liverseg_core.cases.ingest import survey_case
from liverseg_core.cases.memory import ingest_bytes
from liverseg_core.cases.target import plan_target
from liverseg_core.config import IngestConfig
from liverseg_core.errors import LiversegError
from liverseg_core.sources.archive import index_tar
from liverseg_core.volumes.geometry import MAX_VOXELS
from liverseg_core.volumes.nifti_header import MAX_EXTENSION, NiftiHeader, parse_header

HEADERS = int(os.environ.get("LIVERSEG_FUZZ_HEADERS", "20000"))
FILES = int(os.environ.get("LIVERSEG_FUZZ_FILES", "600"))
GATE_CODES = {"LS312", "LS313", "LS314", "LS315", "LS316", "LS319"}
FILE_CODES = GATE_CODES | {"LS311", "LS317", "LS318", "LS320", "LS321"}
SLOWEST_S = 2.0
"""A header takes a ten-thousandth, but the machine may be doing something else."""
HELD_BYTES = 1 << 20
INTEGERS = (0, 1, 2, 3, 4, 7, 8, -1, 127, 255, 348, 540, 32767, -32768, 2**31 - 1, -(2**31), 2**62, -(2**63))
FLOATS = (0, -0.0, 1, -1, 1e-45, 1e-30, 0.01, 100, 352, 1e6, 1e30, 3.4e38, np.inf, -np.inf, np.nan)
KINDS = (nib.Nifti1Header, nib.Nifti2Header)
SHAPE = (12, 10, 8)


def good_headers() -> list[bytes]:
    """NIfTI-1 and NIfTI-2 in both byte orders, each with sform, qform, both and neither."""
    found = []
    for kind in KINDS:
        for sform, qform in ((1, 0), (0, 1), (1, 1), (0, 0)):
            header = kind()
            header.set_data_shape(SHAPE)
            header.set_data_dtype(np.int16)
            header["vox_offset"], header["magic"] = header.single_vox_offset, header.single_magic
            header.set_qform(np.diag([-0.8, 0.8, 2.5, 1]), qform)
            header.set_sform(np.diag([-0.8, 0.8, 2.5, 1]), sform)
            found += [header.as_byteswapped(order).binaryblock for order in "<>"]
    return found


GOOD = good_headers()
Generator = np.random.Generator


def flip(raw: bytearray, rng: Generator) -> None:
    for at in rng.integers(0, len(raw), int(rng.integers(1, 9))):
        raw[at] ^= 1 << int(rng.integers(8))


def overwrite(raw: bytearray, rng: Generator) -> None:
    at = int(rng.integers(len(raw)))
    noise = rng.bytes(int(rng.integers(1, 33)))[: len(raw) - at]
    raw[at : at + len(noise)] = noise


def extreme(raw: bytearray, rng: Generator) -> None:
    """One number of one field becomes an extreme one, in either byte order."""
    kinds, starts = FIELDS[len(raw) >= 540]
    field = int(rng.integers(len(kinds)))
    number, values = kinds[field].base, FLOATS if kinds[field].base.kind == "f" else INTEGERS
    at = starts[field] + number.itemsize * int(rng.integers(kinds[field].itemsize // number.itemsize))
    with np.errstate(all="ignore"):
        value = np.array(values[int(rng.integers(len(values)))]).astype(
            number.newbyteorder("<>"[rng.integers(2)])
        )
    raw[at : at + number.itemsize] = value.tobytes()[: len(raw) - at] if at < len(raw) else b""


def resize(raw: bytearray, rng: Generator) -> None:
    size = int(rng.choice([1, 4, 347, 348, 352, 539, 540, 544, int(rng.integers(1, 1200))]))
    raw[size:] = b""
    raw += rng.bytes(size - len(raw))


def read_fields(kind: type[nib.Nifti1Header]) -> tuple[list[np.dtype], list[int]]:
    """Types and places of the fields that reading depends on."""
    fields = kind.template_dtype.fields
    names = [name for name in fields if name.startswith(READ)]
    return [fields[name][0] for name in names], [fields[name][1] for name in names]


READ = (
    "sizeof",
    "dim",
    "datatype",
    "bitpix",
    "pixdim",
    "vox_offset",
    "scl",
    "qform",
    "sform",
    "quatern",
    "qoff",
    "srow",
)
FIELDS = [read_fields(kind) for kind in KINDS]
MUTATIONS = (flip, overwrite, extreme, extreme, extreme, resize)


def mutant(number: int) -> bytes:
    """A good header, changed one to four times."""
    rng = np.random.default_rng(number)
    raw = bytearray(GOOD[number % len(GOOD)])
    for choice in rng.integers(0, len(MUTATIONS), int(rng.integers(1, 5))):
        MUTATIONS[choice](raw, rng)
    return bytes(raw)


def gate(raw: bytes) -> str:
    """What the header comes to: a code, or "" and then all that is promised of it holds."""
    try:
        header = parse_header(raw, "x")
        target = plan_target(header, IngestConfig())
    except LiversegError as error:
        return error.code if len(str(error)) < 1000 else f"{error.code} at length"
    assert 0 < np.prod(header.shape, dtype=object) <= MAX_VOXELS
    assert 0 < np.prod(target.grid.shape, dtype=object) <= MAX_VOXELS
    assert np.isfinite(header.affine).all()
    assert 348 <= header.offset <= 540 + MAX_EXTENSION
    assert header.total_bytes <= 540 + MAX_EXTENSION + 8 * MAX_VOXELS
    assert 0 < need(header, target.grid.shape, target.orientation.axes) < 80 * MAX_VOXELS
    return ""


def need(header: NiftiHeader, shape: tuple[int, int, int], axes: tuple[int, int, int]) -> int:
    return ingest_bytes(header, header, shape, axes, taps=4)


@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
def test_headers() -> None:
    """The gate names whatever is wrong, and lets through only what can be used."""
    found, slowest = Counter[str](), 0.0
    before = psutil.Process().memory_info().rss
    started = time.monotonic()
    for number in range(HEADERS):
        raw = mutant(number)
        begun = time.perf_counter()
        try:
            found[gate(raw)] += 1
        except Exception as error:
            raise AssertionError(f"mutant {number}") from error
        slowest = max(slowest, time.perf_counter() - begun)
    grown = psutil.Process().memory_info().rss - before
    print(f"\n{HEADERS} headers in {time.monotonic() - started:.1f} s", dict(found.most_common()))
    print(f"slowest {slowest * 1e3:.1f} ms, memory grown by {grown / 1e6:.1f} MB")
    assert found.keys() <= GATE_CODES | {""}
    assert min(found[code] for code in ("", "LS312", "LS313", "LS314", "LS315", "LS316")) > HEADERS / 200
    assert slowest < SLOWEST_S
    assert grown < 64e6


@pytest.mark.filterwarnings("ignore")
def test_no_header_takes_memory() -> None:
    tracemalloc.start()
    try:
        for number in range(500):
            tracemalloc.reset_peak()
            held = tracemalloc.get_traced_memory()[0]
            gate(mutant(number))
            assert tracemalloc.get_traced_memory()[1] - held < HELD_BYTES, f"mutant {number}"
    finally:
        tracemalloc.stop()


def with_long_header(content: bytes, rng: Generator) -> bytes:
    """A gzip file with an extra field, a name and a comment of any length, as the standard has them."""
    lengths = [int(length) for length in rng.choice([0, 1, 300, 65_535, 600_000], 3)]
    extra, name, comment = (b"x" * min(lengths[0], 65_535), b"n" * lengths[1], b"c" * lengths[2])
    flags = 4 * bool(extra) + 8 * bool(name) + 16 * bool(comment)
    head = b"\x1f\x8b\x08" + bytes([flags]) + bytes(4) + b"\0\3"
    head += (struct.pack("<H", len(extra)) + extra) * bool(extra)
    head += (name + b"\0") * bool(name) + (comment + b"\0") * bool(comment)
    deflate = zlib.compressobj(1, zlib.DEFLATED, -15)
    body = deflate.compress(content) + deflate.flush()
    return head + body + struct.pack("<II", zlib.crc32(content), len(content))


def file_mutant(number: int, content: bytes) -> tuple[str, bytes]:
    """A NIfTI file with something wrong in its header, its voxels, its gzip, or its length."""
    rng = np.random.default_rng(number)
    kind = ("header", "voxels", "gzip", "cut gzip", "cut", "plain", "long gzip")[number % 7]
    if kind == "header":
        return kind, gzip.compress(mutant(number) + content[348:], 1, mtime=0)
    if kind == "long gzip":
        return kind, with_long_header(content, rng)
    changed = bytearray(content if kind in ("voxels", "cut", "plain") else gzip.compress(content, 1, mtime=0))
    if kind.startswith("cut"):
        del changed[int(rng.integers(len(changed))) :]
    else:
        flip(changed, rng)
    return kind, gzip.compress(bytes(changed), 1, mtime=0) if kind in ("voxels", "cut") else bytes(changed)


@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
def test_files(build: SimpleNamespace, tmp_path: Path) -> None:
    """Through everything but writing: image or label mutated; damage that gzip can see never passes."""
    matrix, config = build.affine("LPS", (0.8, 0.8, 2.5)), IngestConfig(spacing_mm=(5, 5, 5))
    parts = [build.nifti(part, matrix) for part in build.ball(SHAPE)]
    packed = [build.zipped(part) for part in parts]
    expected = survey_case(build.case(tmp_path, *packed), config)["fingerprint"]["content"]
    found, started = Counter[tuple[str, str]](), time.monotonic()
    for number in range(FILES):
        which = number // 7 % 2
        kind, data = file_mutant(number, parts[which])
        both = [data if n == which else whole for n, whole in enumerate(packed)]
        case = build.case(tmp_path, *([data] if kind == "header" else both))  # no label would lie on it
        try:
            passed = survey_case(case, config, memory_limit=10**9)["fingerprint"]["content"]
            assert passed == expected or "gzip" not in kind, f"file {number}"
            code = ""
        except LiversegError as error:
            code = error.code
        except Exception as error:
            raise AssertionError(f"file {number}, {kind}") from error
        found[kind, code] += 1
    print(f"\n{FILES} files in {time.monotonic() - started:.1f} s", sorted(found.items()))
    assert {code for _, code in found} <= FILE_CODES | {""}
    assert {code for kind, code in found if kind.startswith("cut")} <= {"LS311", "LS312", "LS317"}
    assert {code for kind, code in found if kind == "long gzip"} == {"", "LS311"}
    assert found["gzip", ""] < FILES / 60, "flips in what gzip says of time and system alone"


def archive_mutant(number: int, whole: bytes, starts: list[int]) -> bytes:
    """A tar with extended headers put in, some with sizes and numbers that can't be, and bits flipped."""
    rng = np.random.default_rng(number)
    for _ in range(int(rng.integers(1, 4))):
        entry = tarfile.TarInfo("pax")
        entry.type = bytes(rng.choice(list(b"xgLKXS0157"), 1).astype(np.uint8))
        body = KEYWORDS[int(rng.integers(len(KEYWORDS)))]
        entry.size = len(body)
        raw = bytearray(entry.tobuf() + body.ljust(-(-len(body) // 512) * 512, b"\0"))
        if rng.integers(2):
            flip(raw, rng)
        at = int(rng.choice(starts))
        whole = whole[:at] + bytes(raw) * int(rng.choice([1, 2, 400])) + whole[at:]
    return whole


KEYWORDS = (
    b"20 comment=abcdefgh\n",
    b"12 size=-99\n",
    b"30 size=99999999999999999999\n",
    b"16 mtime=later\n",
    b"27 GNU.sparse.map=1,x,3,,\n",
    b"22 GNU.sparse.size=-1\n",
    b"99999999999999999999 a=b\n",
    b"0 =\n",
    b"\xff" * 700,
    b"18 path=/etc/pass\n",
    b"",
)


@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
def test_archives(build: SimpleNamespace, tmp_path: Path) -> None:
    """Whatever stands in a tar's headers, it is indexed or refused with a code."""
    scan = build.zipped(build.nifti(build.ball(SHAPE)[0]))
    path = build.tar(tmp_path / "t.tar", build.members({"a": (scan, None), "b": (scan, None)}))
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        starts = [member.offset for member in archive]
    found, started = Counter[str](), time.monotonic()
    for number in range(FILES):
        path.write_bytes(archive_mutant(number, whole, starts))
        try:
            index_tar(path)
            found[""] += 1
        except LiversegError as error:
            found[error.code] += 1
        except Exception as error:
            raise AssertionError(f"archive {number}") from error
    print(f"\n{FILES} archives in {time.monotonic() - started:.1f} s", sorted(found.items()))
    assert found.keys() <= {"", "LS302", "LS303", "LS308"}
    assert min(found[code] for code in ("", "LS302", "LS308")) > 0
