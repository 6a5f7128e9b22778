"""The one cache: an artifact that is there is returned, one that is not is made and committed whole.

The staging folder's name depends on the key alone: a killed training finds its own checkpoint. Where
artifacts live, on disk or behind S3, is for the store to know.
"""

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from liverseg_core.artifacts.artifact import MANIFEST, Artifact, Facts, Recipe, Stage, make_manifest
from liverseg_core.durable import write_atomically


@dataclass(frozen=True)
class Leftover:
    """What a stage left unfinished, or keeps here as a copy only.

    Args:
        place: Where it is.
        size: Its bytes.
        modified: Seconds since 1970 when it was last changed or used.
    """

    place: str
    size: int
    modified: float


@dataclass(frozen=True)
class Survey:
    """What a store holds of a stage: complete artifacts, their bytes, and the rest."""

    complete: int
    size: int
    leftovers: tuple[Leftover, ...]


class Store(Protocol):
    """Where artifacts live: a folder a stage, a folder an artifact below it. Plain values, for workers.

    Raises:
        LiversegError: LS203 when it can't be written, LS701 when its disk is full; LS411 to LS413 for its
            server.
    """

    def find(self, stage: Stage, key: str) -> Artifact | None:
        """The artifact of this key by its manifest, or None; LS501 when that is damaged."""

    def folders(self, stage: Stage) -> frozenset[str]:
        """The keys that have a folder, with one listing; what was broken by hand may lack its manifest."""

    def staging(self, stage: Stage, key: str) -> AbstractContextManager[Path]:
        """This key's staging folder on this machine, held against other processes: LS601."""

    def mirror(self, stage: Stage, key: str, folder: Path) -> None:
        """Have what is in this folder of a resumable staging folder outlive this machine."""

    def commit(self, stage: Stage, key: str, staging: Path) -> Artifact:
        """Make a staged folder, with its manifest, the artifact; return the one that is there then."""

    def fetch(self, stage: Stage, key: str) -> Path:
        """The folder of a complete artifact on this machine; LS505 when there is none."""

    def place(self, artifact: Artifact) -> str:
        """Where a person finds the artifact's files."""

    def read(self, name: str) -> bytes | None:
        """A small document beside the artifacts, or None."""

    def write(self, name: str, data: bytes) -> None:
        """Replace a small document."""

    def create(self, name: str, data: bytes) -> None:
        """Write a small document unless it is there: what another run wrote first stays."""

    def survey(self, stage: Stage) -> Survey:
        """What there is of a stage; reads names, sizes and times only."""

    def discard(self, leftover: Leftover) -> bool:
        """Remove a leftover; False when a process is at work on it."""


def produce(store: Store, recipe: Recipe, make: Callable[[Path], Facts]) -> Artifact:
    """Return the artifact of this recipe, making it only if it is not there.

    Args:
        store: Where it lives.
        recipe: What decides the content.
        make: Writes the artifact's files into the folder it is given and returns its facts.

    Raises:
        LiversegError: LS601 when another process is making it; LS501 when its manifest is unreadable; what a
            `Store` raises.
    """
    stage, key = recipe.stage, recipe.key
    found = store.find(stage, key)
    if found is not None:
        return found
    with store.staging(stage, key) as staging:
        found = store.find(stage, key)  # who held the staging folder may just have committed it
        if found is not None:
            return found
        started, resumed = time.monotonic(), any(staging.iterdir())
        facts = make(staging)
        manifest = make_manifest(recipe, staging, facts, time.monotonic() - started, resumed)
        write_atomically(staging / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
        return store.commit(stage, key, staging)
