"""What a request for a range of bytes must come back with, whoever serves it, and how often it is made."""

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from liverseg_core.config import S3Config
from liverseg_core.errors import LiversegError

Answer = TypeVar("Answer")
DELAY_CAP_S = 30.0


@dataclass(frozen=True)
class Reply:
    """A range as it came.

    Args:
        data: Exactly the bytes asked for, up to the file's end.
        total: Size of the whole file.
        version: ETag or date of last change; "" where the server tells neither.
    """

    data: bytes
    total: int
    version: str


class Passing(Exception):
    """A failure that may not happen again: worth another try.

    Args:
        error: What to raise when it lasts.
        wait_s: How long the server asks to be left alone.
    """

    def __init__(self, error: LiversegError, wait_s: float = 0) -> None:
        super().__init__(error, wait_s)
        self.error, self.wait_s = error, wait_s


def insist(ask: Callable[[], Answer], options: S3Config) -> Answer:
    """Ask, and ask again after a while that doubles, with some chance in it: many workers ask at once.

    Raises:
        LiversegError: What the last `Passing` stands for, or what `ask` raises.
    """
    for tried in range(options.attempts):
        try:
            return ask()
        except Passing as trouble:
            last = trouble
        if tried + 1 < options.attempts:
            delay = options.backoff_s * 2**tried * random.uniform(0.5, 1.5)  # not of any result
            time.sleep(min(max(delay, last.wait_s), DELAY_CAP_S))
    raise last.error


def expected_length(content_range: str | None, offset: int, size: int, where: str) -> tuple[int, int]:
    """Bytes that must follow, and the size of the whole file, by a reply's Content-Range.

    Raises:
        LiversegError: LS406 when it is another range than the one asked for.
    """
    found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", content_range or "")
    if found:
        first, last, total = (int(part) for part in found.groups())
        if first == offset and last == min(offset + size, total) - 1:
            return last + 1 - first, total
    raise dishonest(
        where, f"answers bytes {offset} to {offset + size - 1} with {content_range or 'no range'!r}"
    )


def whole_size(content_range: str | None) -> int:
    """Size of the file by the Content-Range of a 416 reply; 0 where it does not say."""
    found = re.fullmatch(r"bytes \*/(\d{1,18})", content_range or "")
    return int(found[1]) if found else 0


def dishonest(where: str, trouble: str) -> LiversegError:
    """A server that does not do as asked."""
    allowed = "a server that sends exactly the range asked for (status 206)"
    return LiversegError("LS406", f"{where} {trouble}", allowed, "Download the file, or use another server")


def failing(where: str, trouble: str) -> LiversegError:
    """A server that can't be reached, or fails."""
    remedy = "Check the address and the network, then run the same command again"
    return LiversegError("LS405", f"{where}: {trouble}", "a server that answers", remedy)


def refused(where: str, trouble: str) -> LiversegError:
    """A server that wants other credentials."""
    remedy = "Renew the credentials (AWS_…, or the signed URL), or set remote.anonymous for a public bucket"
    return LiversegError("LS407", f"{where}: {trouble}", "credentials that may read it", remedy)


def absent(where: str) -> LiversegError:
    """A file that the server does not have."""
    return LiversegError("LS301", f"{where} does not exist", "a Decathlon tar", "Check bucket, key and path")


def cut_short(where: str, offset: int, expected: int, found: int) -> Passing:
    """A body that ends before its range does."""
    what = f"{where} ends early ({found} of {expected} bytes from {offset})"
    return Passing(LiversegError("LS303", what, "the whole range", "Run the same command again"))
