"""Files behind s3:// and https://, read by ranges that are asked for again when they fail."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from liverseg_core.config import RemoteConfig
from liverseg_core.errors import LiversegError
from liverseg_core.sources.http_ranges import fetch as fetch_http
from liverseg_core.sources.http_ranges import shown
from liverseg_core.sources.ranges import Reply, absent, insist

FIRST = 1 << 16
AHEAD = 8 << 20
"""Bytes of one request when much is read in order; the next is under way meanwhile."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as it was when the source was opened.

    Args:
        url: Where it is.
        size: Its bytes.
        version: Its ETag or date of last change; every later reply must have the same.
        options: How it is asked for.
    """

    url: str
    size: int
    version: str
    options: RemoteConfig

    def __str__(self) -> str:
        return shown(self.url)


def open_remote(url: str, options: RemoteConfig) -> tuple[RemoteFile, bytes]:
    """A remote file and its first bytes, with one request.

    Raises:
        LiversegError: LS301 when there is none; LS405, LS406 or LS407 for its server; LS204 or LS211 for a
            URL that may not be asked.
    """
    reply = insist(lambda: _fetch(url, 0, FIRST, options), options)
    return RemoteFile(url, reply.total, reply.version, options), reply.data


def list_remote(url: str, options: RemoteConfig) -> dict[str, RemoteFile]:
    """The files below `s3://bucket/prefix/`, by their names there, with a request a thousand.

    Raises:
        LiversegError: LS301 when there are none; what `open_remote` raises.
    """
    from liverseg_core.sources.s3_ranges import list_objects

    found = {
        name: RemoteFile(url + name, size, version, options)
        for name, size, version in list_objects(url, options)
        if not name.endswith("/")  # the mark of an empty folder
    }
    if not found:
        raise absent(url)
    return found


def read_remote(file: RemoteFile, offset: int, size: int) -> bytes:
    """A range that lies inside the file, with one request.

    Raises:
        LiversegError: LS408 when the file has changed; LS303 when it always ends early; what `open_remote`
            raises.
    """
    if not size:
        return b""
    reply = insist(lambda: _fetch(file.url, offset, size, file.options), file.options)
    if (reply.total, reply.version) != (file.size, file.version):
        remedy = "Run the same command again: it reads the new file from its start"
        raise LiversegError(
            "LS408", f"{file} changed while it was read", "a file that stays as it is", remedy
        )
    return reply.data


def stream_remote(file: RemoteFile, offset: int, size: int) -> Iterator[bytes]:
    """A range in order, in pieces of at most `AHEAD` bytes, the next one read meanwhile.

    Raises:
        LiversegError: What `read_remote` raises.
    """
    if not size:
        return
    end = offset + size
    parts = [(at, min(AHEAD, end - at)) for at in range(offset, end, AHEAD)]
    reader = ThreadPoolExecutor(1, "read-ahead")
    try:
        coming = reader.submit(read_remote, file, *parts[0])
        for part in parts[1:]:
            data = coming.result()
            coming = reader.submit(read_remote, file, *part)
            yield data
        yield coming.result()
    finally:
        reader.shutdown(wait=False, cancel_futures=True)


def _fetch(url: str, offset: int, size: int, options: RemoteConfig) -> Reply:
    if url.startswith("s3://"):
        from liverseg_core.sources.s3_ranges import fetch as fetch_s3  # botocore takes a second to import

        return fetch_s3(url, offset, size, options)
    return fetch_http(url, offset, size, options)
