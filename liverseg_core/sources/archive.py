"""The index of a tar: where each member's bytes lie, and a digest that names them, from one pass.

The pass reads a window at a time. One around the boundary of two members holds the trailer of the first, the
header of the second and its first bytes, which is all that headers and digests need: a remote tar costs one
small request a member, and none for members that share a window.
"""

import hashlib
import posixpath
import struct
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

from liverseg_core.errors import LiversegError
from liverseg_core.sources.files import File, file_size, read_range, stream_range, truncated
from liverseg_core.volumes.inflate import GZIP
from liverseg_core.volumes.nifti_header import parse_header

END_BYTES = 1 << 14
WINDOW = 1 << 16
BEHIND = END_BYTES + tarfile.BLOCKSIZE
"""A member's last bytes, and what fills up its last block."""
LISTING = "dataset.json"
HEADER_LIMIT = 1 << 20


@dataclass(frozen=True)
class Extent:
    """Where a member's bytes are; its digest and, of a small dataset.json, content, if the pass met them."""

    file: File
    offset: int
    size: int
    digest: str | None = None
    content: bytes | None = None


Extents = dict[str, Extent]
"""Member name → extent."""


def index_tar(file: File, first: bytes = b"") -> Extents:
    """Find every member of a plain tar.

    Args:
        file: The tar.
        first: Its first bytes, where they were read already.

    Raises:
        LiversegError: LS302 not a tar, LS303 truncated, LS308 an unsafe name; what `read_range` raises.
    """
    extents: Extents = {}
    window = _Window(file, first)
    before = ("", b"")
    for member in _headers(file, window):
        _name_content(extents, window, *before)
        name = _checked_name(file, member, extents)
        if member.offset_data + member.size > window.size:
            raise truncated(file, repr(member.name))
        before = ("", b"")
        if member.isreg():
            extents[name] = Extent(file, member.offset_data, member.size)
            if posixpath.basename(name) == LISTING and member.size <= WINDOW:
                content = window.read_at(member.offset_data, member.size)
                extents[name] = replace(extents[name], content=content)
            before = (name, window.read_at(member.offset_data, min(member.size, END_BYTES)))
    _name_content(extents, window, *before)
    return extents


def content_of(extent: Extent, name: str) -> bytes:
    """A small member's bytes.

    Raises:
        LiversegError: What `read_range` raises.
    """
    if extent.content is not None:
        return extent.content
    return read_range(extent.file, name, extent.offset, extent.size)


def content_digest(extent: Extent, name: str) -> str:
    """SHA-256 of a member's two ends and size, or of all of it where the ends don't vouch for the middle.

    Raises:
        LiversegError: What `read_range` raises.
    """
    if extent.digest:
        return extent.digest
    file, offset, size = extent.file, extent.offset, extent.size
    head = read_range(file, name, offset, min(size, END_BYTES))
    tail_size = min(size - len(head), END_BYTES)
    if head[:2] == GZIP:
        tail = read_range(file, name, offset + size - tail_size, tail_size)
        if digest := _digest_of_ends(head, tail, size, name):
            return digest
    found = hashlib.sha256()
    for piece in stream_range(file, name, offset, size):
        found.update(piece)
    return found.hexdigest()


def unsafe(file: File, name: str, trouble: str) -> LiversegError:
    """A member that can't be trusted."""
    what = f"{file}: member {name!r} {trouble}"
    return LiversegError("LS308", what, "regular files with distinct plain names", "Make the archive anew")


def _no_tar(file: File, trouble: object) -> LiversegError:
    return LiversegError(
        "LS302",
        f"{file} is not a plain tar ({trouble})",
        "an uncompressed Decathlon tar",
        "Download it again, or decompress it (gunzip) first",
    )


def _headers(file: File, window: "_Window") -> Iterator[tarfile.TarInfo]:
    """What the members' headers say, one after another."""
    met = False
    try:
        with tarfile.TarFile(fileobj=cast(BinaryIO, window)) as archive:
            while member := archive.next():
                archive.members = []  # type: ignore[attr-defined]  # it would remember a million of them
                met = True
                yield member
    except LiversegError:
        raise
    except RecursionError:  # tarfile calls itself for each
        raise _no_tar(file, "a member has hundreds of headers in a row") from None
    except Exception as error:  # whatever else odd headers lead tarfile to
        raise (truncated(file, str(error)) if met else _no_tar(file, error)) from None


class _Window:
    """A file for tarfile, of which it holds one window in memory."""

    def __init__(self, file: File, first: bytes) -> None:
        self.file, self.size = file, file_size(file)
        self.start, self.held = 0, first
        self.at = 0

    def tell(self) -> int:
        return self.at

    def seek(self, at: int) -> int:
        self.at = at
        return at

    def read(self, size: int) -> bytes:
        if not 0 <= size <= HEADER_LIMIT:
            raise tarfile.ReadError(f"a header of {size} bytes")
        data = self.read_at(self.at, size)
        self.at += len(data)
        return data

    def read_at(self, at: int, size: int) -> bytes:
        """These bytes, fewer at the end of the file, from the window, which moves there when it must."""
        size = max(0, min(size, self.size - at))
        if at < self.start or at + size > self.start + len(self.held):
            start = max(0, at - BEHIND)
            length = min(max(WINDOW, at + size - start), self.size - start)
            self.start, self.held = start, read_range(self.file, f"bytes from {start}", start, length)
        return self.held[at - self.start : at - self.start + size]


def _checked_name(file: File, member: tarfile.TarInfo, extents: Extents) -> str:
    name = posixpath.normpath(member.name)
    if not (member.isreg() or member.isdir()) or member.issparse() or member.size < 0:
        raise unsafe(file, member.name, "is a link, a device or sparse, or has no true size")
    if name.startswith(("/", "..")) or any(ord(letter) < 32 for letter in name):
        raise unsafe(file, member.name, "points outside the archive or is unprintable")
    if name in extents:
        raise unsafe(file, member.name, "appears twice")
    return name


def _name_content(extents: Extents, window: _Window, name: str, head: bytes) -> None:
    """Give a member its digest, if its two ends can: the window has just come to its end."""
    if head[:2] != GZIP:
        return
    extent = extents[name]
    tail_size = min(extent.size - len(head), END_BYTES)
    tail = window.read_at(extent.offset + extent.size - tail_size, tail_size)
    extents[name] = replace(extent, digest=_digest_of_ends(head, tail, extent.size, name))


def _digest_of_ends(head: bytes, tail: bytes, size: int, name: str) -> str | None:
    if not _trailer_covers_all(head, head + tail, name):
        return None
    return hashlib.sha256(head + tail + struct.pack("<Q", size)).hexdigest()


def _trailer_covers_all(head: bytes, ends: bytes, name: str) -> bool:
    """Whether a gzip's last trailer counts every byte that the header promises: then its CRC covers them too.

    False for plain files and for gzip of several members, whose last trailer speaks of the last one only.
    """
    if len(ends) < 18:
        return False
    try:
        header = parse_header(zlib.decompressobj(31).decompress(head, 1024), name)
    except (LiversegError, zlib.error):
        return False
    length: int = struct.unpack("<I", ends[-4:])[0]
    return length == header.total_bytes % 2**32
