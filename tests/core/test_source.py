"""The source: members by offset, digests that name content, and a code for everything that is wrong."""

import gzip
import hashlib
import json
import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from liverseg_core.cases.case_record import case_recipe
from liverseg_core.config import IngestConfig
from liverseg_core.phantom.dataset import PhantomSpec, write_phantom_tar
from liverseg_core.sources.source import Source, open_source

JUNK = {"T/._dataset.json": b"x", "T/imagesTr/._a.nii.gz": b"x", "T/.DS_Store": b"x", "__MACOSX/T/a": b"x"}


@pytest.fixture
def dataset(build: SimpleNamespace) -> dict[str, bytes]:
    image, label = (build.zipped(build.nifti(part)) for part in build.ball())
    return build.members({"a": (image, label), "b": (build.zipped(build.nifti(build.ball()[0] + 1)), None)})


def digests(source: Source) -> list[tuple[str, str, str | None]]:
    return [
        (case.case, case.image.digest, case.label.digest if case.label else None) for case in source.cases
    ]


def test_members_by_offset_are_those_of_tarfile(tmp_path: Path) -> None:
    path = tmp_path / "phantom.tar"
    write_phantom_tar(path, PhantomSpec(cases=3, unlabelled=1, size=(32, 32, 16)))
    source = open_source(str(path), hashlib.md5(path.read_bytes()).hexdigest().upper())
    with tarfile.open(path) as archive:
        for case in source.cases:
            for member in filter(None, (case.image, case.label)):
                assert member.read() == archive.extractfile(member.name).read()
        archive.extractall(tmp_path / "folder", filter="data")
    assert [case.label is None for case in source.cases] == [False] * 3 + [True]
    assert source.junk == 1 + 3 * 2 + 1
    folder = open_source(str(tmp_path / "folder"))
    inner = open_source(str(tmp_path / "folder" / "Task03_Liver"))
    assert digests(source) == digests(folder) == digests(inner)
    assert source.name == folder.name == "Liver phantom"
    config = IngestConfig()
    keys = [[case_recipe(case, config).key for case in found.cases] for found in (source, folder, inner)]
    assert keys[0] == keys[1] == keys[2]
    assert len(set(keys[0])) == 4


def test_junk_is_skipped_and_counted(
    build: SimpleNamespace, tmp_path: Path, dataset: dict[str, bytes]
) -> None:
    source = open_source(str(build.tar(tmp_path / "t.tar", {**JUNK, **dataset})))
    assert source.junk == len(JUNK)
    assert digests(source) == digests(open_source(str(build.tar(tmp_path / "clean.tar", dataset))))


def packed(data: bytes, stored: bool) -> bytes:
    return gzip.compress(data, 0 if stored else 9, mtime=0)


@pytest.mark.parametrize("stored", [False, True])
def test_digest_names_content(build: SimpleNamespace, tmp_path: Path, stored: bool) -> None:
    """One changed voxel in the middle gives another digest, though only the two ends are read."""
    noise = np.random.default_rng(0).integers(-900, 900, (60, 50, 40)).astype(np.int16)
    other = noise.copy()
    other[30, 25, 20] ^= 1
    first, second = (build.nifti(data, np.eye(4)) for data in (noise, other))
    variants = {
        "same": packed(first, stored),
        "again": packed(first, stored),
        "voxel": packed(second, stored),
        "members": gzip.compress(first[:9999], mtime=0) + packed(first[9999:], stored),
        "voxel-members": gzip.compress(first[:9999], mtime=0) + packed(second[9999:], stored),
        "blocks": b"".join(gzip.compress(first[at : at + 65280], mtime=0) for at in range(0, 250000, 65280)),
        "plain": first,
        "voxel-plain": second,
    }
    cases = {name: (data, None) for name, data in variants.items()}
    found = {
        name: digest
        for name, digest, _ in digests(open_source(str(build.tar(tmp_path / "t", build.members(cases)))))
    }
    assert found["same"] == found["again"]
    assert len(set(found.values())) == len(found) - 1
    for name in ("members", "voxel-members", "blocks", "plain", "voxel-plain"):
        assert found[name] == hashlib.sha256(variants[name]).hexdigest(), "read whole"
    assert found["same"] != hashlib.sha256(variants["same"]).hexdigest(), "read at its ends"


def listing(**changes: object) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    def change(members: dict[str, bytes]) -> dict[str, bytes]:
        described = json.loads(members["T/dataset.json"]) | changes
        return members | {"T/dataset.json": json.dumps(described).encode()}

    return change


def text(content: bytes) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda members: members | {"T/dataset.json": content}


def without(name: str) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda members: {key: value for key, value in members.items() if name not in key}


def twice(*images: str) -> list[dict[str, str]]:
    return [{"image": image, "label": "labelsTr/a.nii.gz"} for image in images]


def with_test(name: str) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    """One more unlabelled case, which is there."""
    return lambda members: listing(test=[name])(members | {f"T/{name}": members["T/imagesTr/a.nii.gz"]})


LISTINGS = [
    ("good", lambda members: members, ""),
    ("no dataset.json", without("dataset.json"), "LS305"),
    ("empty", text(b""), "LS306"),
    ("not JSON", text(b"{"), "LS306"),
    ("not UTF-8", text(b'{"name": "\xff"}'), "LS306"),
    ("a list", text(b"[]"), "LS306"),
    ("deeply nested", text(b"[" * 200_000), "LS306"),
    ("a number of 10,000 digits", text(b'{"name": ' + b"9" * 10_000 + b"}"), "LS306"),
    ("huge", text(b" " * ((1 << 26) + 1)), "LS306"),
    ("no labels", listing(labels=None), "LS306"),
    ("labels of the spleen", listing(labels={"0": "background", "1": "spleen"}), "LS306"),
    ("one label more", listing(labels={"0": "b", "1": "liver", "2": "cancer", "3": "vessel"}), "LS306"),
    ("labels are numbers", listing(labels={"0": 0, "1": 1}), "LS306"),
    ("training without labels", listing(training=["imagesTr/a.nii.gz"]), "LS306"),
    ("liver alone", listing(labels={"0": "background", "1": "Liver"}), ""),
    ("absent image", without("imagesTr/a"), "LS307"),
    ("absent label", without("labelsTr/a"), "LS307"),
    ("absent test image", without("imagesTs/b"), "LS307"),
    ("path out of the tree", listing(test=["../../etc/passwd"]), "LS307"),
    ("absolute path", listing(test=["/etc/passwd"]), "LS307"),
    ("a case twice", listing(training=twice("imagesTr/a.nii.gz", "./imagesTr/a.nii.gz")), "LS308"),
    ("a case in training and test", listing(test=["imagesTr/a.nii.gz"]), "LS308"),
    ("cases that differ in capitals", with_test("imagesTs/A.nii.gz"), "LS308"),
    ("a case named in markup", with_test("imagesTs/<script>.nii.gz"), "LS308"),
    ("a case that spreadsheets run", with_test("imagesTs/=cmd.nii.gz"), "LS308"),
    ("a case of 65 letters", with_test(f"imagesTs/{'x' * 65}.nii.gz"), "LS308"),
    ("a path with NUL", listing(test=["imagesTs/b\0.nii.gz"]), "LS307"),
    ("wrong counts: the lists decide", listing(numTraining=99, numTest=-1), ""),
]


@pytest.mark.parametrize(("name", "change", "code"), LISTINGS, ids=[name for name, *_ in LISTINGS])
def test_listings(
    build: SimpleNamespace,
    tmp_path: Path,
    dataset: dict[str, bytes],
    name: str,
    change: Callable[[dict[str, bytes]], dict[str, bytes]],
    code: str,
) -> None:
    members = change(dataset)
    assert build.refusal(open_source, str(build.tar(tmp_path / "t.tar", members))) == code
    for path, data in members.items():
        file = tmp_path / "folder" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    assert build.refusal(open_source, str(tmp_path / "folder")) == code


def entry(name: str = "T/x", **fields: object) -> bytes:
    """A tar header of its own, with fields that tarfile would not write."""
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT)


SPECIAL = [
    ("..", entry("T/../../x"), "LS308"),
    ("absolute", entry("/etc/passwd"), "LS308"),
    ("newline", entry("T/a\nb"), "LS308"),
    ("NUL", entry(type=tarfile.XHDTYPE, size=512) + b"14 path=T/a\0b\n".ljust(512, b"\0") + entry(), "LS308"),
    ("escape", entry("T/\x1b[2J"), "LS308"),
    ("300 characters", entry("T/" + "x" * 300), ""),
    ("not UTF-8", entry("T/\udcff"), ""),
    ("symbolic link", entry(type=tarfile.SYMTYPE, linkname="dataset.json"), "LS308"),
    ("hard link", entry(type=tarfile.LNKTYPE, linkname="T/dataset.json"), "LS308"),
    ("device", entry(type=tarfile.CHRTYPE), "LS308"),
    ("pipe", entry(type=tarfile.FIFOTYPE), "LS308"),
    ("sparse", entry(type=tarfile.GNUTYPE_SPARSE), "LS308"),
    ("twice", entry("T/imagesTr/a.nii.gz"), "LS308"),
    ("twice by another path", entry("T/./imagesTr//a.nii.gz"), "LS308"),
    ("a petabyte", entry(size=10**15), "LS303"),
    ("negative", entry(size=-512), "LS308"),
    ("very negative", entry(size=-(10**15)), "LS308"),
    ("long name of a petabyte", entry(type=tarfile.GNUTYPE_LONGNAME, size=10**15), "LS303"),
    ("long name of more than memory", entry(type=tarfile.GNUTYPE_LONGNAME, size=2**70), "LS303"),
    ("long name of negative size", entry(type=tarfile.GNUTYPE_LONGNAME, size=-512), "LS303"),
    ("pax nonsense", entry(type=tarfile.XHDTYPE, size=512) + b"9" * 512 + entry(), ""),
    (
        "pax size",
        entry(type=tarfile.XHDTYPE, size=512) + b"17 size=-1000000\n".ljust(512, b"\0") + entry(),
        "LS308",
    ),
]


@pytest.mark.parametrize(("name", "block", "code"), SPECIAL, ids=[name for name, *_ in SPECIAL])
@pytest.mark.timeout(20)
def test_special_members(
    build: SimpleNamespace, tmp_path: Path, dataset: dict[str, bytes], name: str, block: bytes, code: str
) -> None:
    path = build.tar(tmp_path / "t.tar", dataset)
    with tarfile.open(path) as archive:
        end = max(info.offset_data + -(-info.size // 512) * 512 for info in archive)
    path.write_bytes(path.read_bytes()[:end] + block + bytes(1024))
    assert build.refusal(open_source, str(path)) == code


@pytest.mark.timeout(60)
def test_many_members(build: SimpleNamespace, tmp_path: Path, dataset: dict[str, bytes]) -> None:
    """A fiftieth of a million empty ones: what a million takes is fifty times this, in time and memory."""
    path = build.tar(tmp_path / "t.tar", dataset)
    whole = path.read_bytes()
    path.write_bytes(b"".join(entry(f"T/x{number}") for number in range(20_000)) + whole)
    before = psutil.Process().memory_info().rss
    found = open_source(str(path))
    assert psutil.Process().memory_info().rss - before < 50e6
    assert len(found.cases) == 2


def test_truncation_anywhere_is_named(
    build: SimpleNamespace, tmp_path: Path, dataset: dict[str, bytes]
) -> None:
    path = build.tar(tmp_path / "t.tar", dataset)
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        entries = list(archive)
    found = {"in a member": set(), "in a header": set(), "at a boundary": set()}
    for info in entries[1:]:
        for where, at in (
            ("in a member", info.offset_data + info.size // 2),
            ("in a member", info.offset_data + info.size - 1),
            ("in a header", info.offset + 200),
            ("at a boundary", info.offset),
        ):
            path.write_bytes(whole[:at])
            found[where].add(build.refusal(open_source, str(path)))
    assert found["in a member"] == {"LS303"}
    assert found["in a header"] | found["at a boundary"] <= {"LS303", "LS307"}
    path.write_bytes(whole[: entries[0].offset_data + 5])
    assert build.refusal(open_source, str(path)) == "LS303"
    # the end-of-archive blocks hold nothing that is needed
    path.write_bytes(whole[: entries[-1].offset_data + -(-entries[-1].size // 512) * 512])
    assert build.refusal(open_source, str(path)) == ""


def test_a_flipped_header_bit_hides_no_member(
    build: SimpleNamespace, tmp_path: Path, dataset: dict[str, bytes]
) -> None:
    path = build.tar(tmp_path / "t.tar", dataset)
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        offsets = [info.offset for info in archive]
    rng = np.random.default_rng(0)
    for _ in range(60):
        changed = bytearray(whole)
        changed[int(rng.choice(offsets)) + int(rng.integers(512))] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        assert build.refusal(open_source, str(path)) in ("LS302", "LS303", "LS305", "LS307", "LS308")


def test_what_is_no_tar(build: SimpleNamespace, tmp_path: Path, dataset: dict[str, bytes]) -> None:
    path = build.tar(tmp_path / "t.tar", dataset)
    content = path.read_bytes()
    assert build.refusal(open_source, str(path), "0" * 32) == "LS304"
    assert build.refusal(open_source, str(tmp_path), "0" * 32) == "LS301", "a folder has no MD5"
    assert build.refusal(open_source, str(tmp_path / "none.tar")) == "LS301"
    assert build.refusal(open_source, "ftp://host/t.tar") == "LS204"
    for name, data in {
        "gz": gzip.compress(content),
        "html": b"<html>" * 500,
        "empty": b"",
        "noise": os.urandom(5000),
    }.items():
        path.write_bytes(data)
        assert build.refusal(open_source, str(path)) == "LS302", name


def test_a_member_that_went_away(build: SimpleNamespace, tmp_path: Path, dataset: dict[str, bytes]) -> None:
    path = build.tar(tmp_path / "t.tar", dataset)
    image = open_source(str(path)).cases[0].image
    path.write_bytes(path.read_bytes()[: image.offset + 5])
    assert build.refusal(image.read) == "LS303"
    path.unlink()
    assert build.refusal(image.read) == "LS301"


def test_ends_vouch_only_for_what_the_header_promises(build: SimpleNamespace, tmp_path: Path) -> None:
    """A trailer that lies about the length sends the digest over all bytes."""
    honest = build.zipped(build.nifti(build.ball()[0]))
    lying = honest[:-4] + struct.pack("<I", 5)
    found = open_source(str(build.tar(tmp_path / "t", build.members({"a": (lying, None)}))))
    assert found.cases[0].image.digest == hashlib.sha256(lying).hexdigest()
