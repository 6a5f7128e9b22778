"""Bytes that come in pieces, read as one file, inflated where they are gzip.

A gzip stream is checked as it is read: every member's CRC and length, and that nothing but zeros follows.
"""

import io
from collections.abc import Iterable
from typing import BinaryIO, cast

from isal import igzip, igzip_lib, isal_zlib

from liverseg_core.errors import LiversegError

GZIP = b"\x1f\x8b"
MAX_INFLATION = 1032
"""Deflate packs no more than this into a byte."""
PIECE = 1 << 20


class _Joined(io.RawIOBase):
    """Pieces, one behind another."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.pieces = iter(pieces)
        self.rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed has no buffer's len
        while not self.rest:
            piece = next(self.pieces, None)
            if piece is None:
                return 0
            self.rest = memoryview(piece)
        count = min(len(buffer), len(self.rest))
        buffer[:count] = self.rest[:count]
        self.rest = self.rest[count:]
        return count


class Inflated:
    """A file's content, to be read once from its start to its end.

    Args:
        pieces: The file's bytes in order, gzipped or not, however cut.
        name: What to call it in errors.
    """

    def __init__(self, pieces: Iterable[bytes], name: str) -> None:
        file = joined(pieces)
        self.name = name
        self.gzipped = is_gzip(file)
        # IGzipFile inflates straight into what it returns, and holds one piece of the packed bytes
        self.file = cast(BinaryIO, igzip.IGzipFile(fileobj=file, mode="rb")) if self.gzipped else file

    def read(self, size: int) -> bytes:
        """Read as many bytes, fewer only at the end.

        Raises:
            LiversegError: LS311 when the gzip is damaged, cut short or followed by anything but zeros.
        """
        try:
            return self.file.read(size)
        except EOFError:
            raise self._damaged("its end is missing, or bytes follow it") from None
        except OverflowError:  # of names and comments before the voxels; gzip itself knows no limit
            raise self._damaged("a header of more than half a megabyte") from None
        except (igzip.BadGzipFile, igzip_lib.error, isal_zlib.error) as error:  # type: ignore[misc]
            raise self._damaged(str(error)) from None

    def read_into(self, buffer: memoryview) -> int:
        """Fill a buffer of bytes; returns how many there were.

        Raises:
            LiversegError: LS311, as `read`.
        """
        filled = 0
        while filled < len(buffer) and (piece := self.read(min(PIECE, len(buffer) - filled))):
            buffer[filled : filled + len(piece)] = piece
            filled += len(piece)
        return filled

    def _damaged(self, trouble: str) -> LiversegError:
        return LiversegError(
            "LS311", f"{self.name}: damaged gzip ({trouble})", "an intact file", "Copy the file again"
        )


def joined(pieces: Iterable[bytes]) -> io.BufferedReader:
    """Pieces as one file."""
    return io.BufferedReader(_Joined(pieces))  # larger reads pass its small buffer by, with one copy less


def is_gzip(file: io.BufferedReader) -> bool:
    """Whether a file at its start is gzip; takes nothing from it."""
    return file.peek(2)[:2] == GZIP
