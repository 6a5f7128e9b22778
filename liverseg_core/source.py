"""A Decathlon dataset as it lies: a tar that is indexed by offset and never extracted, or a folder.

Every scan becomes a `Member`: where its bytes are, and a digest that names its content. For a gzipped scan
the digest needs only the file's two ends, since the trailer holds the CRC and length of all that is inside;
a 27 GB tar is thus named without reading it.
"""

import hashlib
import json
import posixpath
import re
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from liverseg_core.errors import LiversegError
from liverseg_core.nifti import GZIP, inflate
from liverseg_core.nifti_header import parse_header

CASE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
JUNK = re.compile(r"(^|/)(\._[^/]*|\.DS_Store|__MACOSX(/.*)?)$")
END_BYTES = 1 << 14
LISTING_LIMIT = 1 << 26
"""dataset.json of 100,000 cases is 10 MB."""


@dataclass(frozen=True)
class Member:
    """The bytes of one scan inside a source.

    Args:
        path: The file that holds them: the tar, or the scan itself.
        name: The member's name inside the dataset, for errors.
        offset: First byte.
        size: Number of bytes.
        digest: Names the content, wherever it lies.
    """

    path: Path
    name: str
    offset: int
    size: int
    digest: str

    def read(self) -> bytes:
        """Read the member's bytes.

        Raises:
            LiversegError: LS303 when the file no longer holds them all.
        """
        return _read_range(self.path, self.name, self.offset, self.size)


@dataclass(frozen=True)
class CaseSource:
    """One case of a dataset: a scan, and its label unless it is an unlabelled one."""

    case: str
    image: Member
    label: Member | None


@dataclass(frozen=True)
class Source:
    """An indexed dataset."""

    path: Path
    name: str
    cases: tuple[CaseSource, ...]
    junk: int
    """Skipped members such as `._*` and `.DS_Store`."""


class _Pair(BaseModel):
    image: str
    label: str


class _Listing(BaseModel):
    """What we use of dataset.json."""

    name: str = "unnamed"
    labels: dict[str, str]
    training: list[_Pair]
    test: list[str] = []


Extents = dict[str, tuple[Path, int, int]]
"""Member name → (file, offset, size)."""


def open_source(location: str, md5: str | None = None) -> Source:
    """Index a Decathlon tar or unpacked folder.

    Args:
        location: Path of the tar or of the folder that holds dataset.json.
        md5: Expected MD5 of the tar; the whole tar is read to check it.

    Raises:
        LiversegError: LS204 for URLs this version can't read; LS301 missing, LS302 not a tar,
            LS303 truncated, LS304 wrong MD5, LS305 and LS306 no usable dataset.json, LS307 it names absent
            members, LS308 an unsafe name.
    """
    if re.match(r"[a-z0-9]+://", location):
        raise LiversegError(
            "LS204",
            f"cannot read {location}",
            "a local tar or folder",
            "Download it first, then pass its path",
        )
    path = Path(location)
    if not path.exists():
        raise LiversegError("LS301", f"{path} does not exist", "a Decathlon tar or folder", "Check the path")
    if md5 is not None:
        _check_md5(path, md5)
    extents = _scan_folder(path) if path.is_dir() else _scan_tar(path)
    junk = [name for name in extents if JUNK.search(name)]
    for name in junk:
        del extents[name]
    root, listing = _read_listing(path, extents)
    cases = tuple(_cases(path, root, listing, extents))
    return Source(path.absolute(), listing.name, cases, len(junk))


def _scan_folder(path: Path) -> Extents:
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    return {file.relative_to(path).as_posix(): (file, 0, file.stat().st_size) for file in files}


def _scan_tar(path: Path) -> Extents:
    extents: Extents = {}
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = posixpath.normpath(member.name)
                if not (member.isreg() or member.isdir()) or member.issparse() or member.size < 0:
                    raise _unsafe(path, member.name, "is a link, a device or sparse, or has no true size")
                if name.startswith(("/", "..")) or any(ord(letter) < 32 for letter in name):
                    raise _unsafe(path, member.name, "points outside the archive or is unprintable")
                if name in extents:
                    raise _unsafe(path, member.name, "appears twice")
                if member.offset_data + member.size > size:
                    raise _truncated(path, repr(member.name))
                if member.isreg():
                    extents[name] = (path.absolute(), member.offset_data, member.size)
    except OSError as error:
        raise _unreadable(path, error) from None
    except (tarfile.TarError, ValueError, ArithmeticError, MemoryError) as error:  # what odd headers lead to
        if extents:
            raise _truncated(path, str(error)) from None
        raise LiversegError(
            "LS302",
            f"{path} is not a plain tar ({error})",
            "an uncompressed Decathlon tar",
            "Download it again, or decompress it (gunzip) first",
        ) from None
    return extents


def _read_listing(path: Path, extents: Extents) -> tuple[str, _Listing]:
    found = sorted((name for name in extents if posixpath.basename(name) == "dataset.json"), key=len)
    if not found:
        what = f"{path} has no dataset.json"
        raise LiversegError(
            "LS305", what, "the Decathlon layout", "Add dataset.json, or check for truncation"
        )
    file, offset, size = extents[found[0]]
    try:
        if size > LISTING_LIMIT:
            raise ValueError(f"it has {size} bytes")  # noqa: TRY301
        listing = _Listing.model_validate(json.loads(_read_range(file, found[0], offset, size)))
    except (ValueError, RecursionError) as error:
        trouble = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        what = f"{path}: {found[0]} cannot be used: {trouble}"
        raise LiversegError("LS306", what, "name, labels, training, test", "Correct dataset.json") from None
    liver = listing.labels.get("1", "").lower()
    if liver != "liver" or not listing.labels.keys() <= {"0", "1", "2"}:
        raise LiversegError(
            "LS306",
            f"{path}: {found[0]} gives the labels {listing.labels}",
            "0 background, 1 liver, 2 cancer",
            "Use a liver dataset, or map its labels",
        )
    return posixpath.dirname(found[0]), listing


def _cases(path: Path, root: str, listing: _Listing, extents: Extents) -> Iterator[CaseSource]:
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
        case = posixpath.basename(image).removesuffix(".gz").removesuffix(".nii")
        if not CASE_NAME.fullmatch(case) or case.casefold() in seen:
            raise _unsafe(path, image, "gives an unusable or repeated case name")
        seen.add(case.casefold())
        members = [_member(extents, root, name) for name in (image, label) if name]
        yield CaseSource(case, members[0], members[1] if label else None)


def _member(extents: Extents, root: str, name: str) -> Member:
    name = posixpath.normpath(posixpath.join(root, name))
    file, offset, size = extents[name]
    return Member(file, name, offset, size, _digest(file, name, offset, size))


def _digest(file: Path, name: str, offset: int, size: int) -> str:
    """SHA-256 of a member's two ends and size, or of all of it where the ends don't vouch for the middle."""
    head = _read_range(file, name, offset, min(size, END_BYTES))
    tail_size = min(size - len(head), END_BYTES)
    tail = _read_range(file, name, offset + size - tail_size, tail_size)
    if not _trailer_covers_all(head, head + tail, name):
        return hashlib.sha256(_read_range(file, name, offset, size)).hexdigest()
    return hashlib.sha256(head + tail + struct.pack("<Q", size)).hexdigest()


def _trailer_covers_all(head: bytes, ends: bytes, name: str) -> bool:
    """Whether the last gzip trailer counts every byte that the header promises: then its CRC covers them too.

    False for plain files and for gzip of several members, whose last trailer speaks of the last one only.
    """
    if head[:2] != GZIP or len(ends) < 18:
        return False
    try:
        header = parse_header(next(inflate(head, name))[:1024], name)
    except (LiversegError, StopIteration):
        return False
    length: int = struct.unpack("<I", ends[-4:])[0]
    return length == header.total_bytes % 2**32


def _read_range(path: Path, name: str, offset: int, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise _unreadable(path, error) from None
    if len(data) != size:
        raise _truncated(path, name)
    return data


def _check_md5(path: Path, expected: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
    except OSError as error:  # also a folder, which has no MD5
        raise _unreadable(path, error) from None
    if found != expected.lower():
        what = f"{path} has MD5 {found}"
        raise LiversegError("LS304", what, expected, "Download the file again")


def _unreadable(path: Path, error: OSError) -> LiversegError:
    what = f"{path} cannot be read: {error.strerror or error}"
    return LiversegError("LS301", what, "a Decathlon tar or folder that stays readable", "Check the path")


def _truncated(path: Path, where: str) -> LiversegError:
    return LiversegError("LS303", f"{path} ends early ({where})", "the whole archive", "Download it again")


def _unsafe(path: Path, name: str, trouble: str) -> LiversegError:
    what = f"{path}: member {name!r} {trouble}"
    return LiversegError("LS308", what, "regular files with distinct plain names", "Make the archive anew")
