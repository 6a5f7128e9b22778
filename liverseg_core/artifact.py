"""The one cache: an artifact is complete if and only if its manifest exists.

`produce` computes a key from content, returns what is there, or makes it in a staging folder and commits it
with one rename. The manifest lists what went in and every file that came out, so cache and provenance are
one file. The staging folder's name depends on the key alone: a killed training finds its own checkpoint.
"""

import functools
import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from liverseg_core.durable import PART, lock, sync, writable, write_atomically
from liverseg_core.errors import LiversegError

MANIFEST = "manifest.json"
Facts = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """A stage's word, the folder its artifacts live in, and the version of its code.

    Raise `version` whenever the same inputs and config would give other bytes.
    """

    name: str
    folder: str
    version: int
    libraries: tuple[str, ...] = ()
    """Packages whose version decides the bytes, and so is part of the key."""
    resumable: bool = False
    """Whether a killed `make` continues in what it left, or starts from an empty folder."""


@dataclass(frozen=True)
class Recipe:
    """What decides an artifact's content: its config section and the keys of its inputs."""

    stage: Stage
    config: Mapping[str, Any]
    inputs: Mapping[str, Any]

    @property
    def key(self) -> str:
        """First 32 hex digits of the SHA-256 of the canonical JSON of everything that decides the content."""
        stage = [self.stage.name, self.stage.version, library_versions(self.stage.libraries)]
        return digest_json([*stage, self.config, self.inputs])[:32]


@dataclass(frozen=True)
class Artifact:
    """A complete artifact on disk."""

    path: Path
    manifest: Mapping[str, Any]
    cached: bool

    @property
    def key(self) -> str:
        """The content key, which is also the folder's name."""
        return self.path.name

    @property
    def facts(self) -> Facts:
        """The small JSON record that the stage hands on."""
        facts: Facts = self.manifest["facts"]
        return facts


def digest_json(value: object) -> str:
    """SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def produce(store: Path, recipe: Recipe, make: Callable[[Path], Facts]) -> Artifact:
    """Return the artifact of this recipe, making it only if it is not there.

    Args:
        store: The store's root folder.
        recipe: What decides the content.
        make: Writes the artifact's files into the folder it is given and returns its facts.

    Raises:
        LiversegError: LS601 when another process is making it; LS501 when its manifest is unreadable;
            LS203 when the store can't be written, LS701 when its disk is full.
    """
    final = store / recipe.stage.folder / recipe.key
    found = load(final)
    if found is not None:
        return found
    staging = final.with_name(f".staging-{recipe.key}")
    with writable(final.parent), lock(staging.with_suffix(".lock")):
        found = load(final)  # the process that held the lock may just have committed it
        if found is not None:
            return found
        if not recipe.stage.resumable:
            shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(exist_ok=True)
        for part in staging.rglob(f".*{PART}"):  # what a kill inside write_atomically left
            part.unlink()
        started = time.monotonic()
        facts = make(staging)
        manifest = _manifest(recipe, staging, facts, time.monotonic() - started)
        manifest["sha256"] = _seal(json.loads(json.dumps(manifest)))  # of what a reader will see
        write_atomically(staging / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
        _commit(staging, final)
    return Artifact(final, manifest, cached=False)


def load(path: Path) -> Artifact | None:
    """Return the artifact at `path`, or None where there is no complete one."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        intact = manifest["key"] == path.name and manifest["sha256"] == _seal(manifest)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise LiversegError(
            "LS501",
            f"{path / MANIFEST} is damaged",
            "the manifest that liverseg wrote",
            f"Delete the folder {path} and run the same command again; only this artifact is made anew",
        )
    return Artifact(path, manifest, cached=True)


def verify(artifact: Artifact, read_up_to: int | None = None) -> None:
    """Check every file of an artifact against its manifest.

    Args:
        artifact: What to check.
        read_up_to: Of files with more bytes only the size is checked; None reads all.

    Raises:
        LiversegError: LS502 naming the first file that is missing, changed or unexpected.
    """
    listed = {entry["path"]: entry for entry in artifact.manifest["files"]}
    present = {str(path.relative_to(artifact.path)) for path in _files(artifact.path)} - {MANIFEST}
    for name in sorted(listed.keys() | present):
        path = artifact.path / name
        if name not in present:
            trouble = "is missing"
        elif name not in listed:
            trouble = "is not in the manifest"
        elif _differs(path, listed[name], read_up_to):
            trouble = "does not match its checksum"
        else:
            continue
        raise LiversegError(
            "LS502",
            f"{path} {trouble}",
            "exactly the files that the manifest lists, unchanged",
            f"Delete the folder {artifact.path} and run the same command again",
        )


def _differs(path: Path, entry: Mapping[str, Any], read_up_to: int | None) -> bool:
    size = path.stat().st_size
    if size != entry["size"]:
        return True
    return (read_up_to is None or size <= read_up_to) and _sha256(path) != entry["sha256"]


def _manifest(recipe: Recipe, staging: Path, facts: Facts, seconds: float) -> dict[str, Any]:
    files = sorted(path for path in _files(staging) if path.name != MANIFEST)
    return {
        "stage": recipe.stage.name,
        "version": recipe.stage.version,
        "key": recipe.key,
        "config": recipe.config,
        "inputs": recipe.inputs,
        "files": [
            {"path": str(path.relative_to(staging)), "size": path.stat().st_size, "sha256": _sha256(path)}
            for path in files
        ],
        "facts": facts,
        "git_commit": git_commit(),
        "libraries": library_versions(recipe.stage.libraries),
        "seconds": round(seconds, 3),
    }


def _seal(manifest: Mapping[str, Any]) -> str:
    """A manifest's own checksum: its facts are used without any file being read."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _commit(staging: Path, final: Path) -> None:
    for path in [*_files(staging), *(folder for folder in staging.rglob("*") if folder.is_dir()), staging]:
        sync(path)
    if final.exists():  # no manifest, or we would not be here: the rest of something broken by hand
        shutil.rmtree(final)
    staging.rename(final)
    sync(final.parent)


def _files(folder: Path) -> Sequence[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def library_versions(names: Sequence[str]) -> dict[str, str]:
    """Installed versions without the local part, so that a CPU and a GPU build share their artifacts."""
    return {name: _version(name) for name in names}


@functools.cache
def _version(name: str) -> str:
    return version(name).partition("+")[0]


@functools.cache
def git_commit() -> str | None:
    """The commit of the code that runs, with `+dirty`, or None outside a checkout."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty=+dirty",
        "--abbrev=40",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
