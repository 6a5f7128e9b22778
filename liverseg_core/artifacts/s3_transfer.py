"""Folders to objects and back."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from liverseg_core.artifacts.artifact import changed
from liverseg_core.artifacts.s3_objects import Bucket, delete, get, listing, put
from liverseg_core.durable import PART

AT_ONCE = 4
Entry = Mapping[str, Any]
"""A file in a manifest: `path`, `size`, `sha256`."""


def upload(bucket: Bucket, prefix: str, folder: Path, entries: Iterable[Entry]) -> None:
    """Put a manifest's files under a prefix.

    Raises:
        LiversegError: LS411 to LS413.
    """
    _at_once(
        lambda entry: put(bucket, prefix + entry["path"], (folder / entry["path"]).read_bytes()), entries
    )


def download(bucket: Bucket, prefix: str, folder: Path, entries: Iterable[Entry]) -> None:
    """Get a manifest's files, each checked before it is written.

    Raises:
        LiversegError: LS502 for one that is missing or changed; LS411 to LS413.
    """
    place = f"s3://{bucket.name}/{prefix}"

    def one(entry: Entry) -> None:
        data = get(bucket, prefix + entry["path"])
        if data is None:
            raise changed(f"{place}{entry['path']}", "is missing", place)
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise changed(f"{place}{entry['path']}", "does not match its checksum", place)
        _write(folder / entry["path"], data)

    _at_once(one, entries)


def mirror(bucket: Bucket, prefix: str, folder: Path) -> None:
    """Make the objects below a prefix the same as a folder's files.

    Raises:
        LiversegError: LS411 to LS413.
    """
    stored = {entry.key.removeprefix(prefix): entry.md5 for entry in listing(bucket, prefix)}
    files = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(PART)}
    for name, data in files.items():
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != stored.get(name):
            put(bucket, prefix + name, data)
    delete(bucket, [prefix + name for name in stored.keys() - files.keys()])


def restore(bucket: Bucket, prefix: str, folder: Path) -> None:
    """Write every object below a prefix as a file.

    Raises:
        LiversegError: LS411 to LS413.
    """
    for entry in listing(bucket, prefix):
        _write(folder / entry.key.removeprefix(prefix), get(bucket, entry.key) or b"")


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _at_once(work: Callable[[Entry], None], entries: Iterable[Entry]) -> None:
    with ThreadPoolExecutor(AT_ONCE, "objects") as pool:
        for _ in pool.map(work, entries):
            pass
