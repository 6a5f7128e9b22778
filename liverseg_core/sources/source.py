"""A Decathlon dataset as it lies: a tar that is indexed by offset and never extracted, or a folder.

Every scan becomes a `Member`: where its bytes are, and a digest that names its content. For a gzipped scan
the digest needs only the file's two ends, since the trailer holds the CRC and length of all that is inside;
a 27 GB tar is thus named without reading it.
"""

import hashlib
import posixpath
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from liverseg_core.arrays import Spacing
from liverseg_core.config import RemoteConfig
from liverseg_core.errors import LiversegError
from liverseg_core.sources.archive import (
    Extent,
    Extents,
    content_digest,
    index_tar,
    unsafe,
)
from liverseg_core.sources.dataset_json import Listing, read_listing
from liverseg_core.sources.files import PIECE, File, checksum, file_size, stream_range
from liverseg_core.sources.http_ranges import shown
from liverseg_core.sources.index_cache import file_state, keep, recall
from liverseg_core.sources.remote import RemoteFile, list_remote, open_remote
from liverseg_core.volumes.nifti_names import is_packed, stem

CASE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
JUNK = re.compile(r"(^|/)(\._[^/]*|\.DS_Store|__MACOSX(/.*)?)$")
PLAIN = RemoteConfig()
EVERY_SOURCE = "a local tar or folder, s3://bucket/key, s3://bucket/folder/, https://…, or msd://Task03_Liver"
AT_ONCE = 16
"""Requests under way together."""


class Published(NamedTuple):
    """A dataset that everybody has the same copy of."""

    url: str
    endpoint: str
    size: int
    md5: str


PUBLISHED = {
    "msd://Task03_Liver": Published(
        "s3://msd-for-monai/Task03_Liver.tar",
        "https://s3.us-west-2.amazonaws.com",
        28_925_891_584,
        "a90ec6c4aa7f6a3d087205e23d4e6397",
    )
}


@dataclass(frozen=True)
class Member:
    """The bytes of one scan inside a source.

    Args:
        path: What holds them: the tar, here or behind a server, or the scan itself.
        name: The member's name inside the dataset, for errors.
        offset: First byte.
        size: Number of bytes.
        digest: Names the content, wherever it lies.
    """

    path: File
    name: str
    offset: int
    size: int
    digest: str

    def read(self) -> bytes:
        """Read the member's bytes.

        Raises:
            LiversegError: LS303 when the file no longer holds them all, LS301 when it is gone; LS405 to
                LS408 for a remote one.
        """
        return b"".join(self.pieces())

    def pieces(self, size: int = PIECE) -> Iterator[bytes]:
        """The member's bytes in order, in pieces; a remote file is read ahead.

        Args:
            size: Bytes of a piece, at most.

        Raises:
            LiversegError: As `read`.
        """
        return stream_range(self.path, self.name, self.offset, self.size, size)


@dataclass(frozen=True)
class CaseSource:
    """One case of a dataset: a scan, and its label unless it is an unlabelled one."""

    case: str
    image: Member
    label: Member | None
    spacing_mm: Spacing | None = None
    """Along the stored axes, where the headers are wrong."""
    axes: str | None = None
    """Where the stored axes point, such as LPS, where the headers are wrong."""


@dataclass(frozen=True)
class Source:
    """An indexed dataset."""

    path: File
    name: str
    cases: tuple[CaseSource, ...]
    junk: int
    """Skipped members such as `._*` and `.DS_Store`."""


def open_source(location: str, md5: str | None = None, options: RemoteConfig = PLAIN) -> Source:
    """Index a Decathlon tar or unpacked folder; an unchanged tar was indexed already.

    Args:
        location: Path or URL of the tar, or the folder that holds dataset.json; on S3 one that ends with /.
        md5: Expected MD5 of the tar; the whole tar is read to check it, unless it was before.
        options: How a remote one is read.

    Raises:
        LiversegError: LS204 and LS211 for URLs that can't or must not be read; LS301 missing, LS302 not a
            tar, LS303 truncated, LS304 wrong MD5, LS305 and LS306 no usable dataset.json, LS307 it names
            absent members, LS308 an unsafe name; LS405 to LS408 when a server fails.
    """
    if location.startswith("s3://") and location.endswith("/"):
        return _open_bucket(location, md5, options)
    file, first = locate(location, options)
    if isinstance(file, Path) and file.is_dir() and md5 is None:
        return _index(file, _scan_folder(file))
    state = file_state(file)
    kept = recall(_key(file), state) or {}
    unchecked = md5 is not None and kept.get("md5") != md5.lower()
    if md5 is not None and unchecked:
        check_md5(file, checksum(file), md5)
    source = _unpack(file, kept) if kept else _index(file, index_tar(file, first))
    if unchecked or not kept:
        keep(_key(file), state, {**_pack(source), "md5": md5 and md5.lower()})
    return source


def _open_bucket(location: str, md5: str | None, options: RemoteConfig) -> Source:
    """Index a folder on S3 with one listing; where that is not as it was, by both ends of every scan."""
    if md5 is not None:
        what, remedy = f"source_md5 is set, and {shown(location)} is a folder", "Leave source_md5 out"
        raise LiversegError("LS204", what, "the MD5 of a tar", remedy)
    files = list_remote(location, options)
    listed = hashlib.sha256(
        repr([(name, one.size, one.version) for name, one in sorted(files.items())]).encode()
    )
    folder = RemoteFile(location, sum(one.size for one in files.values()), listed.hexdigest(), options)
    kept = recall(location, file_state(folder))
    if kept:
        return _unpack(folder, kept, files)

    def named(name: str) -> Extent:
        extent = Extent(files[name], 0, files[name].size)
        is_scan = is_packed(name) and not JUNK.search(name)
        return replace(extent, digest=content_digest(extent, name)) if is_scan else extent

    with ThreadPoolExecutor(AT_ONCE, "index") as pool:
        extents = dict(zip(files, pool.map(named, files), strict=True))
    source = _index(folder, extents)
    keep(location, file_state(folder), _pack(source))
    return source


def locate(location: str, options: RemoteConfig = PLAIN) -> tuple[File, bytes]:
    """The tar or folder that a location names, and a remote one's first bytes.

    Raises:
        LiversegError: LS204, LS211, LS301, LS304 for a published dataset of another size, LS405 to LS407.
    """
    scheme = location.partition("://")[0].lower() if "://" in location else ""
    if not scheme:
        path = Path(location)
        if not path.exists():
            raise LiversegError(
                "LS301", f"{path} does not exist", "a Decathlon tar or folder", "Check the path"
            )
        return path.absolute(), b""
    published = PUBLISHED.get(location)
    if published:
        endpoint = options.endpoint or published.endpoint
        chosen = {"anonymous": True, "endpoint": endpoint, "region": options.region or "us-west-2"}
        file, first = open_remote(published.url, options.model_copy(update=chosen))
        if file.size != published.size:
            what, allowed = f"{file} has {file.size} bytes", f"{published.size}, as published"
            raise LiversegError("LS304", what, allowed, "Check remote.endpoint, or name the file by its URL")
        return file, first
    if scheme not in ("s3", "http", "https"):
        what = f"cannot read {shown(location)}"
        raise LiversegError("LS204", what, EVERY_SOURCE, "Download it first, then pass its path")
    return open_remote(location, options)


def published_md5(file: File) -> str | None:
    """The MD5 that a file of this size is known to have."""
    size = file_size(file)
    return next((known.md5 for known in PUBLISHED.values() if known.size == size), None)


def check_md5(file: File, found: str, expected: str) -> None:
    """Refuse a file with another MD5.

    Raises:
        LiversegError: LS304.
    """
    if found != expected.lower():
        raise LiversegError("LS304", f"{file} has MD5 {found}", expected, "Download the file again")


def _index(file: File, extents: Extents) -> Source:
    junk = [name for name in extents if JUNK.search(name)]
    for name in junk:
        del extents[name]
    root, listing = read_listing(file, extents)
    return Source(file, listing.name, tuple(_cases(file, root, listing, extents)), len(junk))


def _pack(source: Source) -> dict[str, Any]:
    def packed(member: Member | None) -> list[str | int] | None:
        return [member.name, member.offset, member.size, member.digest] if member else None

    cases = [[case.case, packed(case.image), packed(case.label)] for case in source.cases]
    return {"name": source.name, "junk": source.junk, "cases": cases}


def _unpack(file: File, kept: dict[str, Any], files: Mapping[str, RemoteFile] = {}) -> Source:
    def member(packed: list[Any]) -> Member:
        return Member(files.get(packed[0], file), *packed)

    cases = (CaseSource(case, member(image), label and member(label)) for case, image, label in kept["cases"])
    return Source(file, kept["name"], tuple(cases), kept["junk"])


def _key(file: File) -> str:
    return file.url if isinstance(file, RemoteFile) else str(file)


def _scan_folder(path: Path) -> Extents:
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    return {file.relative_to(path).as_posix(): Extent(file, 0, file.stat().st_size) for file in files}


def _cases(path: File, root: str, listing: Listing, extents: Extents) -> Iterator[CaseSource]:
    pairs = [(pair.image, pair.label) for pair in listing.training] + [
        (image, None) for image in listing.test
    ]
    names = [posixpath.normpath(posixpath.join(root, name)) for pair in pairs for name in pair if name]
    absent = [name for name in names if name not in extents]
    if absent:
        what = f"{path}: dataset.json names {len(absent)} absent members, the first is {absent[0]!r}"
        raise LiversegError(
            "LS307", what, "members that exist", "Download the tar again, or correct dataset.json"
        )
    seen: set[str] = set()
    for image, label in pairs:
        case = stem(image)
        if not CASE_NAME.fullmatch(case) or case.casefold() in seen:
            raise unsafe(path, image, "gives an unusable or repeated case name")
        seen.add(case.casefold())
        members = [_member(extents, root, name) for name in (image, label) if name]
        yield CaseSource(case, members[0], members[1] if label else None)


def _member(extents: Extents, root: str, name: str) -> Member:
    name = posixpath.normpath(posixpath.join(root, name))
    extent = extents[name]
    return Member(extent.file, name, extent.offset, extent.size, content_digest(extent, name))
