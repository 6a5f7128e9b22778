"""What an artifact is: a key of all that decides its content, and a manifest of all that it holds.

An artifact is complete if and only if its manifest exists. The manifest lists what went in and every file
that came out, so cache and provenance are one file.
"""

import hashlib
import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from liverseg_core.errors import LiversegError
from liverseg_core.provenance import git_commit, library_versions

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
    equals: tuple[tuple[str, str], ...] = ()
    """Packages, and of which version, whose part our own code has taken bit for bit: in the key alike."""
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
        versions = {**dict(self.stage.equals), **library_versions(self.stage.libraries)}
        stage = [self.stage.name, self.stage.version, versions]
        return digest_json([*stage, self.config, self.inputs])[:32]


@dataclass(frozen=True)
class Artifact:
    """A complete artifact."""

    path: Path
    """Its folder on this machine; of one that lives elsewhere, there only once its store has fetched it."""
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


def load(path: Path, *, renamed: bool = False) -> Artifact | None:
    """Return the artifact in a folder on this machine, or None where there is no complete one.

    Args:
        path: The folder.
        renamed: Whether it may have another name than its key, as a copy has.

    Raises:
        LiversegError: LS501 for a damaged manifest, or one of another key.
    """
    try:
        data = (path / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        data = b""
    return Artifact(path, parse_manifest(data, None if renamed else path.name, path), cached=True)


def parse_manifest(data: bytes, key: str | None, place: object) -> Facts:
    """A manifest, checked against its own checksum, and for its key where that is known.

    Raises:
        LiversegError: LS501.
    """
    try:
        manifest: Facts = json.loads(data)
        intact = manifest["key"] == (key or manifest["key"]) and manifest["sha256"] == _seal(manifest)
    except (ValueError, KeyError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise LiversegError(
            "LS501",
            f"{place}/{MANIFEST} is damaged",
            "the manifest that liverseg wrote",
            f"Delete {place} and run the same command again; only this artifact is made anew",
        )
    return manifest


def verify(artifact: Artifact, read_up_to: int | None = None, only: Collection[str] | None = None) -> None:
    """Check every file of an artifact on this machine against its manifest.

    Args:
        artifact: What to check.
        read_up_to: Of files with more bytes only the size is checked; None reads all.
        only: Names of the files that matter, where not all do.

    Raises:
        LiversegError: LS502 naming the first file that is missing, changed or unexpected.
    """
    listed = {entry["path"]: entry for entry in artifact.manifest["files"]}
    present = {str(path.relative_to(artifact.path)) for path in files_below(artifact.path)} - {MANIFEST}
    for name in sorted(listed.keys() | present if only is None else listed.keys() & {*only}):
        path = artifact.path / name
        if name not in present:
            trouble = "is missing"
        elif name not in listed:
            trouble = "is not in the manifest"
        elif _differs(path, listed[name], read_up_to):
            trouble = "does not match its checksum"
        else:
            continue
        raise changed(path, trouble, artifact.path)


def changed(path: object, trouble: str, artifact: object) -> LiversegError:
    """A stored file that is not the one that was written."""
    return LiversegError(
        "LS502",
        f"{path} {trouble}",
        "exactly the files that the manifest lists, unchanged",
        f"Delete {artifact} and run the same command again",
    )


def files_below(folder: Path) -> Sequence[Path]:
    """Every file under a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


def _differs(path: Path, entry: Mapping[str, Any], read_up_to: int | None) -> bool:
    size = path.stat().st_size
    if size != entry["size"]:
        return True
    return (read_up_to is None or size <= read_up_to) and _sha256(path) != entry["sha256"]


def make_manifest(recipe: Recipe, folder: Path, facts: Facts, seconds: float, resumed: bool = False) -> Facts:
    """The manifest of what `folder` holds now.

    Args:
        recipe: What decided it.
        folder: Every file below it is listed with size and digest.
        facts: The record that the stage hands on.
        seconds: How long it took.
        resumed: Whether it went on from what a killed process left: the seconds are of the last one.
    """
    files = sorted(path for path in files_below(folder) if path.name != MANIFEST)
    manifest: Facts = {
        "stage": recipe.stage.name,
        "version": recipe.stage.version,
        "key": recipe.key,
        "config": recipe.config,
        "inputs": recipe.inputs,
        "files": [
            {"path": str(path.relative_to(folder)), "size": path.stat().st_size, "sha256": _sha256(path)}
            for path in files
        ],
        "facts": facts,
        "liverseg": library_versions(("liverseg",))["liverseg"],
        "git_commit": git_commit(),
        "libraries": library_versions(recipe.stage.libraries),
        "seconds": round(seconds, 3),
        "resumed": resumed,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "attempt": uuid.uuid4().hex,
    }
    manifest = json.loads(json.dumps(manifest))  # what a reader will see
    return {**manifest, "sha256": _seal(manifest)}


def _seal(manifest: Mapping[str, Any]) -> str:
    """A manifest's own checksum: its facts are used without any file being read."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
