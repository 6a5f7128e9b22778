"""Sources behind servers: the same digests, few requests, a code for every way in which a server fails."""

import hashlib
import ipaddress
import json
import os
import pickle
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from liverseg_core.cases.case_record import case_recipe
from liverseg_core.config import IngestConfig, RemoteConfig
from liverseg_core.errors import LiversegError
from liverseg_core.sources import http_ranges, index_cache, remote, source
from liverseg_core.sources.files import checksum
from liverseg_core.sources.http_ranges import shown
from liverseg_core.sources.source import Published, Source, locate, open_source

HERE = RemoteConfig(allowed_hosts=("127.0.0.1",), attempts=3, backoff_s=0.001, timeout_s=0.2)


@pytest.fixture(scope="module")
def big(build: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of members larger than a window, with junk between them as macOS writes it, and a plain one."""
    noise = np.random.default_rng(0)

    def scan() -> bytes:
        return build.zipped(build.nifti(noise.integers(-900, 900, (64, 48, 40)).astype(np.int16)))

    cases = {f"c{number}": (scan(), scan()) for number in range(6)} | {"u": (scan(), None)}
    found = {}
    for name, data in build.members(cases).items():
        folder, _, base = name.rpartition("/")
        found |= {f"{folder}/._{base}": os.urandom(300), name: data}
    return build.tar(tmp_path_factory.mktemp("big") / "big.tar", found)


@pytest.fixture
def served(range_server: Any, big: Path) -> Any:
    """The server, with the tar as `/t.tar`."""
    range_server.files["/t.tar"] = big.read_bytes()
    return range_server


def facts(found: Source) -> list[tuple[Any, ...]]:
    config = IngestConfig()
    return [(case.case, case.image.digest, case_recipe(case, config).key) for case in found.cases]


def test_members_and_keys_are_those_of_the_disk(served: Any, s3_server: Any, big: Path) -> None:
    there = open_source(f"{served.url}/t.tar", options=HERE)
    s3_server.put("data", "some/t.tar", big.read_bytes())
    in_bucket = open_source("s3://data/some/t.tar", options=bucket(s3_server))
    folder = big.parent / "folder"
    with tarfile.open(big) as archive:
        archive.extractall(folder, filter="data")
    here = open_source(str(big))
    assert facts(there) == facts(in_bucket) == facts(open_source(str(folder))) == facts(here)
    assert there.junk == in_bucket.junk == here.junk
    for cases in zip(there.cases, in_bucket.cases, here.cases, strict=True):
        first, *others = (pickle.loads(pickle.dumps(case.image)).read() for case in cases)  # noqa: S301
        assert others == [first, first]
    assert checksum(locate("s3://data/some/t.tar", bucket(s3_server))[0]) == checksum(big)


def test_a_folder_on_s3_that_cases_come_to(s3_server: Any, big: Path, tmp_path: Path) -> None:
    """The same cases as of the tar; one listing while nothing changes; changes are noticed."""
    with tarfile.open(big) as archive:
        archive.extractall(tmp_path, filter="data")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    listing = next(path for path in files if path.name == "dataset.json")

    def bring(path: Path) -> None:
        s3_server.put("data", f"coming/{path.relative_to(listing.parent)}", path.read_bytes())

    for path in files:
        bring(path)
    options, where = bucket(s3_server), "s3://data/coming/"
    found, here = open_source(where, options=options), open_source(str(big))
    assert facts(found) == facts(here)
    assert found.junk == here.junk
    assert found.cases[0].image.read() == here.cases[0].image.read()
    before = s3_server.reads("coming/")
    assert facts(open_source(where, options=options)) == facts(found)
    assert s3_server.reads("coming/") == before, "nothing but the listing"

    said = json.loads(listing.read_text())
    gone = said["training"].pop()
    listing.write_text(json.dumps(said))
    bring(listing)
    shorter = open_source(where, options=options)
    assert len(shorter.cases) == len(found.cases) - 1
    said["training"].append(gone | {"image": "imagesTr/nobody.nii.gz"})
    listing.write_text(json.dumps(said))
    bring(listing)
    with pytest.raises(LiversegError, match=r"LS307.*nobody"):
        open_source(where, options=options)
    for location, md5, code in (("s3://data/nothing/", None, "LS301"), (where, "0" * 32, "LS204")):
        with pytest.raises(LiversegError, match=code):
            open_source(location, md5, options)


def bucket(server: Any, **options: Any) -> RemoteConfig:
    return HERE.model_copy(update={"endpoint": server.url, "anonymous": True, "timeout_s": 5.0} | options)


def test_one_small_request_a_member_then_one_in_all(served: Any, s3_server: Any, big: Path) -> None:
    url = f"{served.url}/t.tar?once"
    first = open_source(url, options=HERE)
    members = 1 + sum(1 + (case.label is not None) for case in first.cases)  # junk counts for nothing
    assert len(served.requests) <= members
    assert max(last + 1 - start for start, last in served.requests) <= 1 << 16
    served.requests.clear()
    assert open_source(url, options=HERE) == first
    assert served.requests == [(0, (1 << 16) - 1)]
    s3_server.put("data", "counted.tar", big.read_bytes())
    for allowed in (members, 1):
        before = s3_server.reads("counted.tar")
        assert facts(open_source("s3://data/counted.tar", options=bucket(s3_server))) == facts(first)
        assert 1 <= s3_server.reads("counted.tar") - before <= allowed


def test_many_small_members_share_a_request(
    build: SimpleNamespace, tmp_path: Path, range_server: Any
) -> None:
    small = build.zipped(build.nifti(build.ball()[0]))
    cases = {f"c{number}": (small, None) for number in range(40)}
    path = build.tar(tmp_path / "t.tar", build.members(cases))
    range_server.files["/t.tar"] = path.read_bytes()
    assert len(open_source(f"{range_server.url}/t.tar", options=HERE).cases) == 40
    assert len(range_server.requests) <= path.stat().st_size / 40_000 + 2


def test_a_changed_source_is_noticed(served: Any, build: SimpleNamespace, tmp_path: Path) -> None:
    url = f"{served.url}/t.tar?changed"
    old = open_source(url, options=HERE)
    other = build.tar(
        tmp_path / "o.tar", build.members({"z": (build.zipped(build.nifti(build.ball()[0])), None)})
    )
    served.files["/t.tar"], served.etag = other.read_bytes(), '"2"'
    assert [case.case for case in open_source(url, options=HERE).cases] == ["z"]
    assert build.refusal(old.cases[0].image.read) in ("LS408", "LS406")
    served.files["/t.tar"] = bytes(1 << 20)
    assert build.refusal(old.cases[0].image.read) == "LS408"


def test_a_local_tar_is_indexed_once(big: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    path.write_bytes(big.read_bytes())
    found = open_source(str(path))
    assert index_cache.file_state(path) is None, "it changed a moment ago"
    monkeypatch.setattr(index_cache, "SETTLED_NS", 0)
    assert open_source(str(path)) == found
    indexed: list[object] = []
    again = source.index_tar
    monkeypatch.setattr(source, "index_tar", lambda *given: indexed.append(given) or again(*given))
    assert open_source(str(path)) == found
    assert not indexed
    os.utime(path, ns=(1, 1))
    assert open_source(str(path)) == found
    assert indexed


def test_a_checked_md5_is_remembered(
    big: Path, monkeypatch: pytest.MonkeyPatch, build: SimpleNamespace, tmp_path: Path
) -> None:
    path = tmp_path / "t.tar"
    path.write_bytes(big.read_bytes())
    monkeypatch.setattr(index_cache, "SETTLED_NS", 0)
    md5 = hashlib.md5(big.read_bytes()).hexdigest()
    assert open_source(str(path)) == open_source(str(path), md5)
    monkeypatch.setattr(source, "checksum", lambda file: "read again")
    open_source(str(path), md5.upper())
    assert build.refusal(open_source, str(path), "0" * 32) == "LS304"


def test_a_damaged_or_impossible_cache_is_none(
    big: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(index_cache, "SETTLED_NS", 0)
    monkeypatch.setenv("LIVERSEG_CACHE", str(tmp_path / "cache"))
    found = open_source(str(big))
    (entry,) = (tmp_path / "cache").rglob("*.json")
    whole = entry.read_bytes()
    for at in range(0, len(whole), 97):
        changed = bytearray(whole)
        changed[at] ^= 1
        entry.write_bytes(changed)
        assert index_cache.recall(str(big), index_cache.file_state(big)) is None
    assert open_source(str(big)) == found
    assert entry.read_bytes() == whole
    monkeypatch.setenv("LIVERSEG_CACHE", "/proc/none")
    assert open_source(str(big)) == found


# Fault, and the code when it lasts. What passes is asked for again; what a server means is not.
FAULTS = [
    ("503", "LS405", True),
    ("500", "LS405", True),
    ("429", "LS405", True),
    ("reset", "LS405", True),
    ("silent", "LS405", True),
    ("slow", "LS405", True),
    ("noise", "LS405", True),
    ("endless header", "LS405", True),
    ("short", "LS303", True),
    ("whole", "LS406", False),
    ("shifted", "LS406", False),
    ("no range", "LS406", False),
    ("encoded", "LS406", False),
    ("longer", "LS406", False),
    ("other size", "LS408", False),
    ("other version", "LS408", False),
    ("no version", "LS408", False),
    ("401", "LS407", False),
    ("403", "LS407", False),
    ("404", "LS301", False),
    ("410", "LS301", False),
    ("400", "LS405", False),
]


@pytest.mark.parametrize(("fault", "code", "passing"), FAULTS, ids=[fault for fault, *_ in FAULTS])
@pytest.mark.timeout(60)
def test_faults(build: SimpleNamespace, served: Any, fault: str, code: str, passing: bool) -> None:
    """A fault that passes costs requests and nothing else; one that lasts is named; neither is ever data."""
    options = HERE.model_copy(update={"timeout_s": 0.1})
    image = open_source(f"{served.url}/t.tar", options=options).cases[2].image
    whole = image.read()
    served.requests.clear()
    served.once = [fault, fault]
    if passing:
        assert image.read() == whole
        assert len(served.requests) == 3
    else:
        assert build.refusal(image.read) == code
        assert len(served.requests) == 1
    served.once, served.always = [], fault
    begun = time.monotonic()
    assert build.refusal(image.read) == code
    assert time.monotonic() - begun < 8
    served.always = ""
    assert image.read() == whole


@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_a_bad_day(served: Any, big: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """Two of three requests fail in one way or another; every byte is right all the same."""
    monkeypatch.setattr(remote, "AHEAD", 50_000)
    chance = np.random.default_rng(0)
    passing = ["503", "429", "reset", "short", "500"]
    served.files["/data/t.tar"] = served.files["/t.tar"]
    options = bucket(served, attempts=40, timeout_s=2.0, backoff_s=1e-6)
    served.once = ["" if chance.random() < 1 / 3 else str(chance.choice(passing)) for _ in range(1000)]
    url = f"{served.url}/t.tar?bad" if scheme == "http" else "s3://data/t.tar"
    found = open_source(url, options=options)
    assert facts(found) == facts(open_source(str(big)))
    for there, here in zip(found.cases, open_source(str(big)).cases, strict=True):
        assert there.image.read() == here.image.read()
    assert 100 < 1000 - len(served.once) < 1000


@pytest.mark.parametrize("fault", ["whole", "shifted", "encoded", "short", "503", "longer"])
def test_faults_while_indexing(build: SimpleNamespace, served: Any, fault: str) -> None:
    url = f"{served.url}/t.tar?{fault}"
    good = open_source(f"{served.url}/t.tar", options=HERE)
    served.once = ["", "", fault]
    code = build.refusal(open_source, url, None, HERE)
    assert code == ("" if fault in ("503", "short") else "LS406")
    served.once = []
    assert facts(open_source(url, options=HERE)) == facts(good)


def test_what_a_server_sends_beyond_the_range_is_no_answer_to_the_next(
    served: Any, build: SimpleNamespace
) -> None:
    image = open_source(f"{served.url}/t.tar", options=HERE).cases[0].image
    whole = image.read()
    for _ in range(3):
        served.once = ["longer"]
        assert build.refusal(image.read) == "LS406"
        assert image.read() == whole


def test_read_ahead(served: Any, monkeypatch: pytest.MonkeyPatch, build: SimpleNamespace, big: Path) -> None:
    monkeypatch.setattr(remote, "AHEAD", 10_000)
    there, here = (
        open_source(*given).cases[0].image for given in ((f"{served.url}/t.tar", None, HERE), (str(big),))
    )
    served.requests.clear()
    pieces = list(there.pieces(4096))
    assert b"".join(pieces) == here.read() == b"".join(here.pieces(777))
    assert max(map(len, pieces)) == 4096
    assert len(served.requests) == -(-there.size // 10_000)
    served.requests.clear()
    begun = there.pieces()
    next(begun)
    begun.close()
    time.sleep(0.1)
    assert len(served.requests) <= 3, "nobody wants the rest"
    served.once = ["", "", "whole"]
    got = []
    with pytest.raises(LiversegError, match="LS406"):
        got.extend(there.pieces())
    assert b"".join(got) == here.read()[: len(got) * 10_000]


ADDRESSES = [
    ("http://93.184.216.34/t.tar", "LS211"),
    ("https://127.0.0.1/t.tar", "LS211"),
    ("https://localhost/t.tar", "LS211"),
    ("https://2130706433/t.tar", "LS211"),
    ("https://0x7f.1/t.tar", "LS211"),
    ("https://0.0.0.0/t.tar", "LS211"),
    ("https://10.1.2.3/t.tar", "LS211"),
    ("https://169.254.169.254/latest/meta-data", "LS211"),
    ("https://100.64.0.1/t.tar", "LS211"),
    ("https://224.0.0.1/t.tar", "LS211"),
    ("https://[::1]/t.tar", "LS211"),
    ("https://[fe80::1]/t.tar", "LS211"),
    ("https://[fd00::1]/t.tar", "LS211"),
    ("https://[::ffff:127.0.0.1]/t.tar", "LS211"),
    ("https://[64:ff9b::a00:1]/t.tar", "LS211"),
    ("https://[2002:7f00:1::]/t.tar", "LS211"),
    ("https://user:secret@host/t.tar", "LS204"),
    ("https:///t.tar", "LS204"),
    ("https://host:99999/t.tar", "LS204"),
    ("https://ho st/t.tar", "LS204"),
    ("https://host/\x1b[2J", "LS204"),
    ("ftp://host/t.tar", "LS204"),
    ("msd://Task09_Spleen", "LS204"),
    ("s3://data", "LS204"),
]


@pytest.mark.parametrize(("url", "code"), ADDRESSES, ids=[ascii(url) for url, _ in ADDRESSES])
def test_what_may_not_be_asked(build: SimpleNamespace, url: str, code: str) -> None:
    with pytest.raises(LiversegError, match=code) as raised:
        open_source(url, options=RemoteConfig(attempts=1, timeout_s=1, anonymous=True))
    assert "secret" not in str(raised.value)
    assert str(raised.value).isprintable()


def test_public_addresses() -> None:
    for address in ("93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34", "64:ff9b::5db8:d822"):
        assert http_ranges._is_public(ipaddress.ip_address(address)), address


def test_redirects_are_checked_like_the_first_address(served: Any, build: SimpleNamespace) -> None:
    url = f"{served.url}/old.tar"
    served.files["/old.tar"] = served.files["/t.tar"]
    read = [url, None, HERE]
    served.once = [f"to {served.url}/t.tar?signature=secret"]
    assert facts(open_source(*read)) == facts(open_source(f"{served.url}/t.tar", options=HERE))
    elsewhere = served.url.replace("127.0.0.1", "127.0.0.2")
    for target in (elsewhere, "https://169.254.169.254", "http://example.org", "https://localhost"):
        served.once = [f"to {target}/t.tar"]
        assert build.refusal(open_source, *read) == "LS211", target
    served.once = ["to file:///etc/passwd"]
    assert build.refusal(open_source, *read) == "LS204"
    served.always = "to /old.tar"
    assert build.refusal(open_source, *read) == "LS406"
    assert shown("https://u:p@host:1/a?secret") == "https://host:1/a?…"


def test_certificates(
    secure_range_server: tuple[Any, Path], big: Path, build: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, certificate = secure_range_server
    served.files["/t.tar"] = big.read_bytes()
    options = HERE.model_copy(update={"allowed_hosts": ("localhost", "127.0.0.1"), "timeout_s": 2.0})
    url = f"{served.url}/t.tar"
    assert build.refusal(open_source, url, None, options) == "LS405", "nobody vouches for it"
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    http_ranges._trust.cache_clear()
    try:
        assert facts(open_source(url, None, options)) == facts(open_source(str(big)))
        assert build.refusal(open_source, url.replace("localhost", "127.0.0.1"), None, options) == "LS405"
        assert build.refusal(open_source, url.replace("https", "http"), None, options) == "LS405"
    finally:
        http_ranges._trust.cache_clear()


def test_a_server_that_is_not_there(build: SimpleNamespace, free_port: Callable[[], int]) -> None:
    assert build.refusal(open_source, f"http://127.0.0.1:{free_port()}/t.tar", None, HERE) == "LS405"
    closed = bucket(SimpleNamespace(url=f"http://127.0.0.1:{free_port()}"))
    assert build.refusal(open_source, "s3://data/t.tar", None, closed) == "LS405"


def test_what_is_no_tar_behind_a_server(range_server: Any, build: SimpleNamespace) -> None:
    for name, data in {"empty": b"", "html": b"<html>" * 500, "noise": os.urandom(200_000)}.items():
        range_server.files[f"/{name}"] = data
        assert build.refusal(open_source, f"{range_server.url}/{name}", None, HERE) == "LS302", name


def test_a_tar_cut_off_behind_a_server(served: Any, build: SimpleNamespace) -> None:
    whole = served.files["/t.tar"]
    for size in range(1000, len(whole) - 20_000, 60_011):
        served.files["/t.tar"], served.etag = whole[:size], f'"{size}"'
        assert build.refusal(open_source, f"{served.url}/t.tar", None, HERE) in ("LS303", "LS307")


def test_huge_header_in_a_huge_file(build: SimpleNamespace, range_server: Any) -> None:
    """A header that claims megabytes is refused, not read."""
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, 50 << 20
    range_server.files["/t.tar"] = entry.tobuf(tarfile.GNU_FORMAT) + bytes(51 << 20)
    assert build.refusal(open_source, f"{range_server.url}/t.tar", None, HERE) == "LS302"
    assert len(range_server.requests) == 1


def test_a_published_dataset(
    s3_server: Any, big: Path, build: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = bucket(s3_server, anonymous=False)
    content = big.read_bytes()
    s3_server.client.create_bucket(
        Bucket="msd-for-monai", CreateBucketConfiguration={"LocationConstraint": "us-west-2"}
    )
    s3_server.put("msd-for-monai", "Task03_Liver.tar", content)
    assert build.refusal(open_source, "msd://Task03_Liver", None, options) == "LS304", "another size"
    known = source.PUBLISHED["msd://Task03_Liver"]
    assert (known.size, known.md5) == (28_925_891_584, "a90ec6c4aa7f6a3d087205e23d4e6397")
    md5 = hashlib.md5(content).hexdigest()
    small = Published(known.url, known.endpoint, len(content), md5)
    monkeypatch.setitem(source.PUBLISHED, "msd://Task03_Liver", small)
    assert facts(open_source("msd://Task03_Liver", None, options)) == facts(open_source(str(big)))
    assert source.published_md5(big) == md5


def test_refusals_of_s3(s3_server: Any, build: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    options = bucket(s3_server)
    assert build.refusal(open_source, "s3://data/none.tar", None, options) == "LS301"
    assert build.refusal(open_source, "s3://no-such-bucket/t.tar", None, options) == "LS301"
    nobody = bucket(s3_server, anonymous=False, attempts=2)
    assert build.refusal(open_source, "s3://data/none.tar", None, nobody) == "LS407"
    s3_server.put("data", "empty.tar", b"")
    assert build.refusal(open_source, "s3://data/empty.tar", None, options) == "LS302"


# What S3 stores with an object may say "encoded"; the others are much alike, or another library's business.
NOT_OF_S3 = ("encoded", "slow", "noise", "no version", "410", "endless header", "longer")
S3_FAULTS = [case for case in FAULTS if case[0] not in NOT_OF_S3]


@pytest.mark.parametrize(("fault", "code", "passing"), S3_FAULTS, ids=[fault for fault, *_ in S3_FAULTS])
def test_faults_of_s3(build: SimpleNamespace, served: Any, fault: str, code: str, passing: bool) -> None:
    """The same server, asked as an S3 server."""
    options = bucket(served, timeout_s=0.5)
    served.files["/data/t.tar"] = served.files["/t.tar"]
    image = open_source("s3://data/t.tar", options=options).cases[2].image
    whole = image.read()
    served.once = [fault, fault]
    if passing:
        assert image.read() == whole
    else:
        assert build.refusal(image.read) == code
    served.once, served.always = [], fault
    assert build.refusal(image.read) == code
    served.always = ""
    assert image.read() == whole


def test_expired_credentials(served: Any, build: SimpleNamespace) -> None:
    options = bucket(served)
    served.files["/data/t.tar"], served.always = served.files["/t.tar"], "expired"
    assert build.refusal(open_source, "s3://data/t.tar", None, options) == "LS407"
    assert len(served.requests) == 1
