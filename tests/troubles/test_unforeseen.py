"""What nobody thought of in one file of many: that one is set aside with a code, the others go on."""

import gzip
import io
import json
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flows.cli import app
from liverseg_core.errors import LiversegError
from liverseg_core.phantom.dataset import PhantomSpec, write_phantom_tar
from liverseg_core.sources.archive import index_tar

ROWS = {
    "2.1": (
        "Ctrl-C while MLflow's database is being made",
        "the next run makes it anew, or finds it whole",
    ),
    "2.2": (
        "an item that kills its Dask worker again and again",
        "it is blamed, the others finish; a minute without a worker is mended, or said",
    ),
    "2.11": (
        "a gzip header over 512 KiB; 500 extended headers in a row; any exception in one case",
        "that case is set aside with a code, and the others go on; of an archive, LS302",
    ),
}
pytestmark = pytest.mark.trouble("2.11")


class OddError(Exception):
    """One that can neither be shown nor made anew from its arguments."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__()

    def __str__(self) -> str:
        raise ValueError


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("phantom") / "phantom.tar"
    write_phantom_tar(path, PhantomSpec(cases=3, unlabelled=0, size=(24, 24, 16)))
    return path


def with_long_header(packed: bytes, field: int) -> bytes:
    """A gzip file with 600 kB of name (8) or comment (16), which gzip itself would read."""
    content, deflate = gzip.decompress(packed), zlib.compressobj(1, zlib.DEFLATED, -15)
    head = b"\x1f\x8b\x08" + bytes([field]) + bytes(4) + b"\0\3" + b"n" * 600_000 + b"\0"
    body = deflate.compress(content) + deflate.flush()
    return head + body + struct.pack("<II", zlib.crc32(content), len(content))


def changed(source: Path, target: Path, name: str, field: int) -> Path:
    """A copy of a tar, with a long gzip header in one of its members."""
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for member in old:
            file = old.extractfile(member)
            data = file.read() if file else b""
            if member.name.endswith(name):
                data = with_long_header(data, field)
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    return target


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [*map(str, arguments), "--workers", "0", "--json"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def aside(source: Path, store: Path) -> dict[str, str]:
    """The one case of three that ingest and verify both set aside."""
    ingested = run("ingest", source, "--store", store, "--set", "ingest.spacing_mm=[6, 6, 6]")
    found: dict[str, Any] = json.loads(ingested.stdout)
    assert (ingested.exit_code, found["made"], len(found["cases"])) == (8, 2, 2)
    (entry,) = found["quarantined"]
    verified = run("verify", source)
    problems = {case["case"]: case["problem"] for case in json.loads(verified.stdout)["cases"]}
    assert verified.exit_code == 3
    assert {name for name, problem in problems.items() if problem} == {entry["case"]}
    assert problems[entry["case"]] == entry["reason"]
    return dict(entry)


@pytest.mark.parametrize(("name", "field"), [("imagesTr/liver_1.nii.gz", 8), ("labelsTr/liver_1.nii.gz", 16)])
def test_a_long_gzip_header(phantom: Path, tmp_path: Path, name: str, field: int) -> None:
    entry = aside(changed(phantom, tmp_path / "long.tar", name, field), tmp_path / "store")
    assert (entry["case"], entry["code"]) == ("liver_1", "LS311")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OddError("", ""), "OddError (test_unforeseen.py, line "),
        (KeyError("x"), "KeyError: 'x' ("),
        (RecursionError("deep\nand more"), "RecursionError: deep ("),
        (OSError("no such codec"), "OSError: no such codec ("),
        (AssertionError(), "AssertionError ("),
        (UserWarning("w" * 1000), f"UserWarning: {'w' * 200} ("),
    ],
)
def test_any_exception(
    phantom: Path, tmp_path: Path, error: Exception, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from liverseg_core.cases import ingest

    opened = ingest.open_scans

    def odd(case: Any, keep: Path | None = None) -> Any:
        if case.case == "liver_1":
            raise error
        return opened(case, keep)

    monkeypatch.setattr(ingest, "open_scans", odd)
    entry = aside(phantom, tmp_path / "store")
    assert (entry["case"], entry["code"]) == ("liver_1", "LS222")
    assert entry["reason"].startswith(f"LS222: liver_1 failed as nobody foresaw: {says}")


def test_no_memory(phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from liverseg_core.cases import ingest

    opened = ingest.open_scans

    def full(case: Any, keep: Path | None = None) -> Any:
        if case.case == "liver_1":
            raise MemoryError
        return opened(case, keep)

    monkeypatch.setattr(ingest, "open_scans", full)
    assert aside(phantom, tmp_path / "store")["code"] == "LS703"


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, b"K", b"X"])
def test_extended_headers_in_a_row(phantom: Path, tmp_path: Path, kind: bytes) -> None:
    """At the beginning, and behind members that were read."""
    entry = tarfile.TarInfo("pax")
    entry.type, entry.size = kind, len(b"20 comment=abcdefgh\n")
    chain = (entry.tobuf() + b"20 comment=abcdefgh\n".ljust(512, b"\0")) * 500
    whole, path = phantom.read_bytes(), tmp_path / "odd.tar"
    with tarfile.open(phantom) as archive:
        middle = archive.getmembers()[2].offset
    for at in (0, middle):
        path.write_bytes(whole[:at] + chain + whole[at:])
        with pytest.raises(LiversegError, match=r"LS302.*hundreds of headers"):
            index_tar(path)
