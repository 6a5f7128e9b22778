"""What a source held when it was last looked at, kept for this user.

An entry is believed while its file is the same: by size and ETag behind a server, by size and times on disk.
"""

import contextlib
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from liverseg_core.durable import write_atomically
from liverseg_core.environment import user_cache
from liverseg_core.sources.files import File
from liverseg_core.sources.remote import RemoteFile

FORMAT = 1
"""Goes up when an entry says other things, or a digest is made in another way."""
ENTRIES = 32
SETTLED_NS = 2_000_000_000
"""A file that changed a moment ago may change again within the resolution of its clock."""


def file_state(file: File) -> str | None:
    """What tells one content of a file from another; None where nothing does."""
    if isinstance(file, RemoteFile):
        return f"{file.size} {file.version}" if file.version else None
    status = file.stat()
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < SETTLED_NS:
        return None
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def recall(location: str, state: str | None) -> dict[str, Any] | None:
    """What was kept of a source whose file is still in this state."""
    if state is None:
        return None
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # the last: a user without a home
        digest, _, content = _place(location).read_bytes().partition(b"\n")
        if hashlib.sha256(content).hexdigest().encode() == digest:
            entry: dict[str, Any] = json.loads(content)
            if entry["state"] == state and entry["format"] == FORMAT:
                return entry
    return None


def keep(location: str, state: str | None, found: dict[str, Any]) -> None:
    """Remember a source; without a word where this user has no room for it."""
    if state is None:
        return
    content = json.dumps({**found, "format": FORMAT, "state": state}, separators=(",", ":")).encode()
    with contextlib.suppress(OSError, RuntimeError):
        place = _place(location)
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(place, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
        entries = sorted(place.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in entries[:-ENTRIES]:
            path.unlink(missing_ok=True)


def _place(location: str) -> Path:
    return user_cache() / "sources" / f"{hashlib.sha256(location.encode()).hexdigest()}.json"
