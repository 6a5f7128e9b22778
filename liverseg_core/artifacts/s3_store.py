"""A store in a bucket: files go up under a name of their attempt's own, the manifest last, and only if it is
the first.

`<stage>/<key>/manifest.json` names the attempt whose files are `<stage>/<key>/<attempt>/…`; so two makers at
once, or a kill half-way, leave files that no manifest names, and `gc` removes them. Work is staged in a
folder of this machine, which also keeps copies of what is read here.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from liverseg_core.artifacts.artifact import MANIFEST, Artifact, Stage, load, parse_manifest
from liverseg_core.artifacts.local_store import STAGING, LocalStore, leftover, not_stored
from liverseg_core.artifacts.produce import Leftover, Survey
from liverseg_core.artifacts.s3_lease import is_held, lease
from liverseg_core.artifacts.s3_objects import Bucket, Listed, create, delete, get, listing, put
from liverseg_core.artifacts.s3_transfer import download, mirror, restore, upload
from liverseg_core.config import StorageConfig
from liverseg_core.durable import writable
from liverseg_core.environment import user_cache

OWNER, CONTENT = "owner.json", "content"
"""Below a shared staging folder: who is at work on it, and what to go on from."""
FETCHING = ".fetching-"
SCHEME = "s3://"
_in_use: dict[Path, IO[str]] = {}


@dataclass(frozen=True)
class S3Store:
    """A `Store` in a bucket.

    Args:
        url: `s3://bucket/prefix`.
        options: How the bucket is reached, and where this machine keeps copies.
    """

    url: str
    options: StorageConfig

    def __str__(self) -> str:
        return self.url

    @property
    def bucket(self) -> Bucket:
        """Where the objects are."""
        return Bucket(self.url.removeprefix(SCHEME).partition("/")[0], self.options)

    @property
    def copies(self) -> LocalStore:
        """This machine's staging folders and copies."""
        base = Path(self.options.copies) if self.options.copies else user_cache() / "stores"
        return LocalStore(base / hashlib.sha256(self.url.encode()).hexdigest()[:16])

    def find(self, stage: Stage, key: str) -> Artifact | None:
        """The artifact of this key by its manifest, or None."""
        data = get(self.bucket, self._key(stage, key, MANIFEST))
        if data is None:
            return None
        manifest = parse_manifest(data, key, f"{self.url}/{stage.folder}/{key}")
        return Artifact(self.copies.root / stage.folder / key, manifest, cached=True)

    def folders(self, stage: Stage) -> frozenset[str]:
        """The keys that have objects, a request a thousand; an upload that was cut off counts, too."""
        prefixes = listing(self.bucket, self._key(stage, ""), "/")
        names = (entry.key.rstrip("/").rpartition("/")[2] for entry in prefixes if not entry.modified)
        return frozenset(name for name in names if not name.startswith("."))

    @contextlib.contextmanager
    def staging(self, stage: Stage, key: str) -> Iterator[Path]:
        """A folder of this machine. What takes long is leased, and goes on from what any machine mirrored; of
        what is quick to make, another machine may make the same meanwhile, and the first one counts.
        """
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(self.copies.staging(stage, key))
            if stage.resumable:
                shared = self._key(stage, f"{STAGING}{key}", "")
                stack.enter_context(lease(self.bucket, shared + OWNER, str(folder)))
                if not any(folder.iterdir()):
                    restore(self.bucket, f"{shared}{CONTENT}/", folder)
            yield folder

    def mirror(self, stage: Stage, key: str, folder: Path) -> None:
        """Make the objects of a folder of a staging folder the same as its files."""
        mirror(self.bucket, self._key(stage, f"{STAGING}{key}", CONTENT, folder.name, ""), folder)

    def commit(self, stage: Stage, key: str, staging: Path) -> Artifact:
        """Upload the files, then the manifest unless there is one; keep a copy of what took long to make."""
        data = (staging / MANIFEST).read_bytes()
        made = parse_manifest(data, key, staging)
        attempt = made["attempt"]

        prefix = self._key(stage, key, attempt, "")
        upload(self.bucket, prefix, staging, made["files"])
        create(self.bucket, self._key(stage, key, MANIFEST), data)
        there = self.find(stage, key)
        if there is None:
            raise not_stored(f"{self.url}/{stage.folder}/{key}")
        if there.manifest["attempt"] != attempt:  # another machine was first
            delete(self.bucket, self._below(prefix))
        if stage.resumable:
            delete(self.bucket, self._below(self._key(stage, f"{STAGING}{key}", "")))
        if stage.resumable and there.manifest["attempt"] == attempt:
            return self.copies.commit(stage, key, staging)
        shutil.rmtree(staging)
        return replace(there, cached=False)

    def fetch(self, stage: Stage, key: str) -> Path:
        """Copy an artifact here, its files checked on the way; the copy stays while this process runs."""
        found = self.find(stage, key)
        if found is None:
            raise not_stored(f"{self.url}/{stage.folder}/{key}")
        final = found.path
        with writable(final.parent):
            _hold(self.copies.root)
            copy = load(final)
            if copy is not None and copy.manifest["attempt"] == found.manifest["attempt"]:
                os.utime(final / MANIFEST)
                return final
            part = Path(tempfile.mkdtemp(prefix=f"{FETCHING}{key}-", dir=final.parent))
            attempt = self._key(stage, key, found.manifest["attempt"], "")
            download(self.bucket, attempt, part, found.manifest["files"])
            (part / MANIFEST).write_text(json.dumps(found.manifest, indent=1, sort_keys=True))
            if copy is not None:
                shutil.rmtree(final)
            try:
                part.rename(final)
            except OSError:  # another process was faster
                shutil.rmtree(part)
                if load(final) is None:
                    raise
        return final

    def place(self, artifact: Artifact) -> str:
        """Where a person finds the artifact's files."""
        return f"{self.url}/{artifact.path.parent.name}/{artifact.key}/{artifact.manifest['attempt']}"

    def read(self, name: str) -> bytes | None:
        """A small document, or None."""
        return get(self.bucket, self._prefix + name)

    def write(self, name: str, data: bytes) -> None:
        """Replace a small document."""
        put(self.bucket, self._prefix + name, data)

    def create(self, name: str, data: bytes) -> None:
        """Write a small document unless it is there."""
        create(self.bucket, self._prefix + name, data)

    def survey(self, stage: Stage) -> Survey:
        """Complete artifacts; attempts that no manifest names, and what this machine keeps."""
        attempts: defaultdict[str, dict[str, list[Listed]]] = defaultdict(lambda: defaultdict(list))
        manifests, size = set(), 0
        for entry in listing(self.bucket, self._key(stage, "")):
            key, _, name = entry.key.removeprefix(self._key(stage, "")).partition("/")
            if name == MANIFEST:
                manifests.add(key)
                size += entry.size
            elif key.startswith(STAGING):
                attempts[key][""].append(entry)
            elif name:
                attempts[key][name.partition("/")[0]].append(entry)
        leftovers = [leftover(path) for path in self._kept_here(stage)]
        for key, found in attempts.items():
            named = next(iter(found)) if len(found) == 1 else self._named(stage, key)
            for attempt, entries in found.items():
                total = sum(entry.size for entry in entries)
                if key in manifests and attempt == named:
                    size += total
                else:
                    place = f"{self.url}/{stage.folder}/{key}/{attempt}".rstrip("/")
                    leftovers.append(Leftover(place, total, max(entry.modified for entry in entries)))
        return Survey(len(manifests), size, tuple(leftovers))

    def discard(self, leftover: Leftover) -> bool:
        """Remove a leftover; copies only while no process uses any."""
        if leftover.place.startswith(SCHEME):
            key = leftover.place.removeprefix(f"{SCHEME}{self.bucket.name}/")
            if is_held(self.bucket, f"{key}/{OWNER}"):
                return False
            delete(self.bucket, self._below(f"{key}/"))
            return True
        with (self.copies.root / ".in-use").open("a") as file, contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self.copies.discard(leftover)
        return False

    @property
    def _prefix(self) -> str:
        prefix = self.url.removeprefix(SCHEME).partition("/")[2].strip("/")
        return f"{prefix}/" if prefix else ""

    def _key(self, stage: Stage, *names: str) -> str:
        return self._prefix + "/".join((stage.folder, *names))

    def _below(self, prefix: str) -> list[str]:
        return [entry.key for entry in listing(self.bucket, prefix)]

    def _named(self, stage: Stage, key: str) -> str | None:
        found = self.find(stage, key)
        return found.manifest["attempt"] if found else None

    def _kept_here(self, stage: Stage) -> Iterator[Path]:
        folder = self.copies.root / stage.folder
        return (path for path in sorted(folder.glob("*")) if path.is_dir()) if folder.is_dir() else iter(())


def _hold(root: Path) -> None:
    """Say that this process uses copies, until it ends: a reader takes a file that vanishes for zeros."""
    if root not in _in_use:
        root.mkdir(parents=True, exist_ok=True)
        file = (root / ".in-use").open("a")
        fcntl.flock(file, fcntl.LOCK_SH)
        _in_use[root] = file
