"""Byte ranges of a file, wherever it lies."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from liverseg_core.errors import LiversegError
from liverseg_core.sources.remote import RemoteFile, read_remote, stream_remote

File = Path | RemoteFile
PIECE = 1 << 20


def read_range(file: File, name: str, offset: int, size: int) -> bytes:
    """All bytes of a range.

    Args:
        file: What holds them.
        name: What they are, for errors.
        offset: First byte.
        size: Number of bytes.

    Raises:
        LiversegError: LS303 when the file does not hold them all, LS301 when it can't be read; LS405 to
            LS408 for a remote one.
    """
    if isinstance(file, RemoteFile):
        if offset + size > file.size:
            raise truncated(file, name)
        return read_remote(file, offset, size)
    try:
        with file.open("rb") as opened:
            opened.seek(offset)
            data = opened.read(size)
    except OSError as error:
        raise unreadable(file, error) from None
    if len(data) != size:
        raise truncated(file, name)
    return data


def stream_range(file: File, name: str, offset: int, size: int, piece: int = PIECE) -> Iterator[bytes]:
    """The bytes of a range in order, in pieces; a remote file is read ahead in larger ones.

    Raises:
        LiversegError: What `read_range` raises.
    """
    if isinstance(file, RemoteFile):
        if offset + size > file.size:
            raise truncated(file, name)
        for data in stream_remote(file, offset, size):
            view = memoryview(data)
            yield from (bytes(view[at : at + piece]) for at in range(0, len(view), piece))
        return
    try:
        with file.open("rb") as opened:
            opened.seek(offset)
            while size and (data := opened.read(min(piece, size))):
                size -= len(data)
                yield data
    except OSError as error:
        raise unreadable(file, error) from None
    if size:
        raise truncated(file, name)


def file_size(file: File) -> int:
    """Bytes of the whole file.

    Raises:
        LiversegError: LS301 when it can't be read.
    """
    if isinstance(file, RemoteFile):
        return file.size
    try:
        return file.stat().st_size
    except OSError as error:
        raise unreadable(file, error) from None


def checksum(file: File, progress: Callable[[int, int], None] | None = None) -> str:
    """MD5 of the whole file.

    Args:
        file: Read to its end.
        progress: Told the bytes done and in all.

    Raises:
        LiversegError: What `read_range` raises.
    """
    total, done = file_size(file), 0
    found = hashlib.md5(usedforsecurity=False)
    for data in stream_range(file, "checksum", 0, total):
        found.update(data)
        done += len(data)
        if progress:
            progress(done, total)
    return found.hexdigest()


def unreadable(file: File, error: OSError) -> LiversegError:
    """A file that the operating system refuses."""
    what = f"{file} cannot be read: {error.strerror or error}"
    return LiversegError("LS301", what, "a Decathlon tar or folder that stays readable", "Check the path")


def truncated(file: File, where: str) -> LiversegError:
    """A file that ends before what it should hold."""
    return LiversegError("LS303", f"{file} ends early ({where})", "the whole archive", "Download it again")
