"""A store in a folder: artifacts are staged beside their final place and committed with one rename."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from liverseg_core.artifacts.artifact import MANIFEST, Artifact, Stage, files_below, load
from liverseg_core.artifacts.produce import Leftover, Survey
from liverseg_core.durable import PART, lock, sync, writable, write_atomically
from liverseg_core.errors import LiversegError

STAGING = ".staging-"


@dataclass(frozen=True)
class LocalStore:
    """A `Store` in a folder of this machine, or of a file system that its workers share."""

    root: Path

    def __str__(self) -> str:
        return str(self.root)

    def find(self, stage: Stage, key: str) -> Artifact | None:
        """The artifact of this key by its manifest, or None."""
        return load(self._folder(stage, key))

    def folders(self, stage: Stage) -> frozenset[str]:
        """The keys that have a folder."""
        try:
            with os.scandir(self.root / stage.folder) as entries:
                return frozenset(entry.name for entry in entries if not entry.name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return frozenset()

    @contextlib.contextmanager
    def staging(self, stage: Stage, key: str) -> Iterator[Path]:
        """The folder that `commit` renames: empty, or for a resumable stage as a killed run left it."""
        folder = self._folder(stage, f"{STAGING}{key}")
        with writable(folder.parent), lock(_lock_of(folder)):
            if not stage.resumable:
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(exist_ok=True)
            for part in folder.rglob(f".*{PART}"):  # what a kill inside write_atomically left
                part.unlink()
            yield folder

    def mirror(self, stage: Stage, key: str, folder: Path) -> None:
        """Nothing: the staging folder is in the store already."""

    def commit(self, stage: Stage, key: str, staging: Path) -> Artifact:
        """Have the disk hold every file, then rename the folder."""
        for path in [*files_below(staging), *(path for path in staging.rglob("*") if path.is_dir()), staging]:
            sync(path)
        final = self._folder(stage, key)
        if final.exists():  # no manifest, or we would not be here: the rest of something broken by hand
            shutil.rmtree(final)
        staging.rename(final)
        sync(final.parent)
        made = load(final)
        assert made is not None
        return replace(made, cached=False)

    def fetch(self, stage: Stage, key: str) -> Path:
        """Its folder: nothing has to be fetched."""
        folder = self._folder(stage, key)
        if not (folder / MANIFEST).exists():
            raise not_stored(str(folder))
        return folder

    def place(self, artifact: Artifact) -> str:
        """Where a person finds the artifact's files."""
        return str(artifact.path)

    def read(self, name: str) -> bytes | None:
        """A small document, or None."""
        try:
            return (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, data: bytes) -> None:
        """Replace a small document."""
        path = self.root / name
        with writable(path.parent):
            write_atomically(path, data)

    def create(self, name: str, data: bytes) -> None:
        """Write a small document unless it is there."""
        path = self.root / name
        part = path.with_name(f".{path.name}.{os.getpid()}")
        with writable(path.parent):
            write_atomically(part, data)
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(part)  # unlike a rename, this never replaces what another run wrote first
            part.unlink()

    def survey(self, stage: Stage) -> Survey:
        """Complete artifacts, and staging folders with what a kill left in them."""
        complete = size = 0
        leftovers = []
        folder = self.root / stage.folder
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name.startswith(STAGING) and path.is_dir():
                leftovers.append(leftover(path))
            elif (path / MANIFEST).exists():
                complete += 1
                size += leftover(path).size
        return Survey(complete, size, tuple(leftovers))

    def discard(self, leftover: Leftover) -> bool:
        """Remove a staging folder, unless a run holds it."""
        path = Path(leftover.place)
        try:
            with writable(path.parent), lock(_lock_of(path)):
                shutil.rmtree(path, ignore_errors=True)
        except LiversegError as error:
            if error.code != "LS601":
                raise
            return False
        return True

    def _folder(self, stage: Stage, name: str) -> Path:
        return self.root / stage.folder / name


def leftover(folder: Path) -> Leftover:
    """A folder by what is below it, all of which may vanish meanwhile."""
    size, modified = 0, 0.0
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            size += 0 if path.is_dir() else status.st_size
            modified = max(modified, status.st_mtime)
    return Leftover(str(folder), size, modified)


def not_stored(place: str) -> LiversegError:
    """An artifact that was there when it was listed."""
    what, allowed = f"{place} is not there, or has lost its manifest", "a complete artifact"
    return LiversegError("LS505", what, allowed, "Delete what is left of it and run the same command again")


def _lock_of(staging: Path) -> Path:
    return staging.with_name(f"{staging.name}.lock")
