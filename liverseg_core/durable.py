"""Writing that lasts: whole files or none, one writer at a time, refusals of the disk as coded errors."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from liverseg_core.errors import LiversegError

PART = ".part"


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART}")  # two runs may write one file at once
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


@contextlib.contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Make a folder of the store, and turn the operating system's refusals inside into coded errors.

    Raises:
        LiversegError: LS203, or LS701 when the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno is None:  # a library's, about what it read
            raise
        code = "LS701" if is_disk_full(error) else "LS203"
        raise cannot_write(code, f"the store at {folder}", error.strerror or str(error)) from error


def cannot_write(code: str, where: str, why: str) -> LiversegError:
    """LS203, or LS701 for want of space, for a place in the store that takes no writes."""
    return LiversegError(
        code,
        f"cannot write to {where}: {why}",
        "a folder that this user may write to, on a disk with free space",
        "Free some space, correct the permissions or pass another --store; finished work is kept",
    )


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an artifact's lock; the kernel drops it when its holder dies, however it dies.

    Raises:
        LiversegError: LS601 when another process holds it, naming that process.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise LiversegError(
                "LS601",
                f"{path.stem.removeprefix('.staging-')} is being made by another run ({file.read().strip()})",
                "one run per artifact at a time",
                "Wait for it to end, or stop it, then run the same command again",
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield
        path.unlink(missing_ok=True)


def is_disk_full(error: OSError) -> bool:
    """Whether an operating system's refusal is for want of space."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def sync(path: Path) -> None:
    """Have the disk hold a file or folder before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
