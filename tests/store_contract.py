"""What every store promises: one is accepted by subclassing `StoreContract` and passing.

What is stored is read and written past the store under test, so that no store vouches for itself.
"""

import contextlib
import gzip
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import pytest

from liverseg_core.artifacts.artifact import MANIFEST, Artifact, Recipe, Stage, load, verify
from liverseg_core.artifacts.case_index import INDEX, remember, stored_facts
from liverseg_core.artifacts.produce import Store, produce
from liverseg_core.artifacts.stages import INGEST
from liverseg_core.durable import write_atomically
from liverseg_core.errors import LiversegError

PLAIN = Stage("plain", "plains", version=1)
RESUMABLE = Stage("resumable", "resumables", version=1, resumable=True)
CONTENT = {"a.bin": b"a" * 5000, "b/c.bin": b"c", "b/empty": b""}
FACTS = {"answer": 42, "share": 0.1, "none": None}
Killed = Callable[[], contextlib.AbstractContextManager[None]]
BOTH = pytest.mark.parametrize("stage", [PLAIN, RESUMABLE], ids=lambda stage: stage.name)


def make(folder: Path) -> dict[str, object]:
    for name, data in CONTENT.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_bytes() != data:
            write_atomically(path, data)
    return dict(FACTS)


def fail(folder: Path) -> dict[str, object]:
    pytest.fail("made again")


def recipe(stage: Stage = PLAIN, **config: object) -> Recipe:
    return Recipe(stage, config, {"input": "x"})


def digests(made: Artifact) -> dict[str, str]:
    return {entry["path"]: entry["sha256"] for entry in made.manifest["files"]}


class Machine(Protocol):
    """The store as a machine of this name has it; a part of what is stored is a store of its own."""

    def __call__(self, name: str, part: str = "") -> Store: ...


class Past(ABC):
    """What a store and its parts hold, under names such as `plains/<key>/manifest.json`, reached past it."""

    @abstractmethod
    def names(self) -> set[str]:
        """Of everything that is stored."""

    @abstractmethod
    def get(self, name: str) -> bytes:
        """What is stored under a name."""

    @abstractmethod
    def put(self, name: str, data: bytes) -> None:
        """Store something else there."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Store nothing there."""

    @abstractmethod
    def folder(self, stage: Stage, made: Artifact) -> str:
        """Where an artifact's files are."""


@dataclass(frozen=True)
class Call:
    """A kind of calls by which a store makes what lasts."""

    owners: tuple[Any, ...]
    """Whatever has the function under its name."""
    name: str
    stage: Stage
    may_be_rare: bool = False
    """Whether it is only made where there is something to clear away."""

    def stop(self, patch: pytest.MonkeyPatch, n: int, after: bool) -> None:
        """Have the n-th call end the process, before or after it does its work."""
        real = next(getattr(owner, self.name) for owner in self.owners if hasattr(owner, self.name))
        counter = itertools.count()

        def stopping(*arguments: Any, **named: Any) -> Any:
            stop = next(counter) == n
            result = None if stop and not after else real(*arguments, **named)
            if stop:
                raise KeyboardInterrupt
            return result

        for owner in self.owners:
            patch.setattr(owner, self.name, stopping, raising=False)


class StoreContract:
    """Tests of a store, by four fixtures.

    `machine` is a `Machine`, `past` reaches what is stored, `call` goes through the kinds of calls that may
    be a process's last, and within `killed()` one ends.
    """

    @pytest.fixture
    def killed(self) -> Killed:
        return lambda: pytest.raises(KeyboardInterrupt)  # type: ignore[return-value]

    def whole_or_absent(self, store: Store, one: Recipe) -> None:
        if store.find(one.stage, one.key):
            fetched = load(store.fetch(one.stage, one.key))
            assert fetched
            verify(fetched)

    @BOTH
    def test_made_once_for_every_machine(self, machine: Machine, past: Past, stage: Stage) -> None:
        one, there = recipe(stage), machine("there")
        assert there.folders(stage) == frozenset()
        made = produce(machine("here"), one, make)
        assert (made.cached, made.facts, made.key) == (False, FACTS, one.key)
        assert sorted(digests(made)) == sorted(CONTENT)
        manifest, files = f"{stage.folder}/{one.key}/{MANIFEST}", past.folder(stage, made)
        stored = {f"{files}/{name}": data for name, data in CONTENT.items()}
        assert past.names() == {manifest, *stored}, "no lock or staging stays"
        assert {name: past.get(name) for name in stored} == stored
        assert json.loads(past.get(manifest)) == made.manifest
        survey, size = there.survey(stage), sum(len(past.get(name)) for name in past.names())
        assert (survey.complete, survey.size) == (1, size)
        found = produce(there, one, fail)
        assert (found.cached, found.manifest, found.facts) == (True, made.manifest, made.facts)
        assert there.place(found) == f"{there}/{files}"
        assert there.folders(stage) == {one.key}
        folder = there.fetch(stage, one.key)
        assert {name: (folder / name).read_bytes() for name in CONTENT} == CONTENT
        fetched = load(folder)
        assert fetched
        assert fetched.manifest == made.manifest
        verify(fetched)

    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    def test_a_crash_at_any_call(
        self, machine: Machine, past: Past, call: Call, after: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Stop before or after the n-th call of a kind, for every n; then again, from another machine."""
        one = recipe(call.stage)
        whole = digests(produce(machine("here", "whole"), one, make))
        for n in itertools.count():
            crashed, part = False, str(n)
            with monkeypatch.context() as patch:
                call.stop(patch, n, after)
                try:
                    produce(machine("here", part), one, make)
                except KeyboardInterrupt:
                    crashed = True
            self.whole_or_absent(machine("reader", part), one)
            store = machine("there", part)
            assert digests(produce(store, one, make)) == whole
            assert not any(".staging" in Path(name).parent.name for name in past.names())
            survey = store.survey(call.stage)
            assert survey.complete == 1
            assert all(store.discard(leftover) for leftover in survey.leftovers)
            assert store.survey(call.stage).leftovers == ()
            assert store.find(one.stage, one.key)
            self.whole_or_absent(machine("another", part), one)
            if not crashed:
                break
        assert n > 0 or call.may_be_rare

    def test_what_takes_long_is_made_by_one(self, machine: Machine, build: SimpleNamespace) -> None:
        def make_and_look(folder: Path) -> dict[str, object]:
            there = machine("there")
            assert build.refusal(produce, there, recipe(RESUMABLE), fail) == "LS601"
            held = [one for one in there.survey(RESUMABLE).leftovers if not there.discard(one)]
            assert len(held) == 1
            return make(folder)

        made = produce(machine("here"), recipe(RESUMABLE), make_and_look)
        assert made.facts == FACTS
        assert produce(machine("there"), recipe(RESUMABLE), fail).cached

    @BOTH
    def test_what_a_broken_off_make_leaves(self, machine: Machine, stage: Stage) -> None:
        store, one = machine("here"), recipe(stage)

        def break_off(folder: Path) -> dict[str, object]:
            (folder / "progress").write_text("half")
            (folder / "deep").mkdir()
            (folder / "deep" / ".x.part").write_text("torn")
            (folder / ".manifest.json.part").write_text("torn")
            raise LiversegError("LS318", "x", "y", "z")

        with pytest.raises(LiversegError, match="LS318"):
            produce(store, one, break_off)
        assert store.find(stage, one.key) is None
        self.whole_or_absent(store, one)
        seen: list[str] = []

        def go_on(folder: Path) -> dict[str, object]:
            seen.extend(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
            return make(folder)

        made = produce(store, one, go_on)
        assert seen == (["progress"] if stage.resumable else []), "torn files never stay"
        assert sorted(digests(made)) == sorted([*CONTENT, *seen])
        self.whole_or_absent(store, one)

    @pytest.mark.parametrize("name", ["here", "there"])
    def test_what_was_mirrored_survives_its_machine(
        self, machine: Machine, past: Past, killed: Killed, name: str
    ) -> None:
        """A training that is killed goes on here at once, and on another machine when its lease is stale."""
        store, one = machine("here"), recipe(RESUMABLE)

        def die(folder: Path) -> dict[str, object]:
            checkpoints = folder / "checkpoints"
            checkpoints.mkdir()
            for step in range(3):
                (checkpoints / f"{step}").write_bytes(b"%d" % step)
                (checkpoints / f"{step - 2}").unlink(missing_ok=True)
                (checkpoints / "best").write_bytes(b"best%d" % step)
                store.mirror(RESUMABLE, one.key, checkpoints)
            raise KeyboardInterrupt

        with killed():
            produce(store, one, die)
        assert sorted(past.get(stored) for stored in past.names() if "checkpoints/" in stored) == [
            b"1",
            b"2",
            b"best2",
        ]

        def go_on(folder: Path) -> dict[str, object]:
            found = {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()}
            assert found == {"1": b"1", "2": b"2", "best": b"best2"}
            for path in (folder / "checkpoints").iterdir():
                path.unlink()
            (folder / "checkpoints").rmdir()
            return make(folder)

        made = produce(machine(name), one, go_on)
        assert sorted(digests(made)) == sorted(CONTENT)
        assert not any(".staging" in stored for stored in past.names())

    def test_leftovers_are_found_and_what_is_at_work_stays(self, machine: Machine, past: Past) -> None:
        store = machine("here")
        produce(store, recipe(), make)
        size = sum(len(past.get(name)) for name in past.names())
        with store.staging(PLAIN, "k" * 32) as staging:
            (staging / "x.bin").write_bytes(b"half")
            (leftover,) = store.survey(PLAIN).leftovers
            assert (Path(leftover.place), leftover.size) == (staging, 4)
            assert not store.discard(leftover), "a run holds it"
        assert store.discard(leftover)
        survey = store.survey(PLAIN)
        assert (survey.complete, survey.size, survey.leftovers) == (1, size, ())
        assert not staging.exists()

    def test_a_damaged_manifest_is_named(self, machine: Machine, past: Past, build: SimpleNamespace) -> None:
        store, one = machine("here"), recipe()
        produce(store, one, make)
        name = f"plains/{one.key}/{MANIFEST}"
        whole = past.get(name)
        damaged = [
            b"",
            b"null",
            b"[]",
            b"{}",
            b"\xff",
            whole[:-2],
            whole.replace(b"42", b"43"),
            b"[" * 100_000,
        ]
        for content in damaged:
            past.put(name, content)
            assert build.refusal(store.find, PLAIN, one.key) == "LS501"
            assert build.refusal(produce, store, one, fail) == "LS501"
        past.put(name, whole)
        assert produce(store, one, fail).facts == FACTS
        past.put(f"plains/{'k' * 32}/{MANIFEST}", whole)
        assert build.refusal(store.find, PLAIN, "k" * 32) == "LS501", (
            "a manifest speaks of its own folder only"
        )

    def test_without_its_manifest_it_is_made_anew(
        self, machine: Machine, past: Past, build: SimpleNamespace
    ) -> None:
        store, one = machine("here"), recipe()
        made = produce(store, one, make)
        past.remove(f"plains/{one.key}/{MANIFEST}")
        past.put(f"{past.folder(PLAIN, made)}/a.bin", b"old")
        assert store.find(PLAIN, one.key) is None
        assert build.refusal(store.fetch, PLAIN, one.key) == "LS505"
        again = produce(store, one, make)
        assert not again.cached
        assert digests(again) == digests(made)
        assert past.get(f"{past.folder(PLAIN, again)}/a.bin") == CONTENT["a.bin"]
        self.whole_or_absent(store, one)

    def test_small_documents(self, machine: Machine, past: Past) -> None:
        store = machine("here")
        assert store.read("d/x.json") is None
        for change, data, expected in (
            (store.create, b"first", b"first"),
            (store.create, b"second", b"first"),
            (store.write, b"third", b"third"),
        ):
            change("d/x.json", data)
            assert store.read("d/x.json") == past.get("d/x.json") == expected
        assert past.names() == {"d/x.json"}

    def test_the_index_is_believed_of_no_case_that_is_not_there(self, machine: Machine, past: Past) -> None:
        store = machine("here")
        made = [produce(store, recipe(INGEST, n=n), make) for n in range(5)]
        keys = [one.key for one in made]
        expected = [FACTS] * 5 + [None]
        assert list(stored_facts(store, [*keys, "f" * 32])) == expected, "from the manifests"
        assert list(stored_facts(store, [*keys, "f" * 32])) == expected, "from the index"
        whole = past.get(INDEX)
        for damage in (b"", b"x", whole[:-9]):
            past.put(INDEX, damage)
            assert list(stored_facts(store, keys)) == expected[:5]
            assert gzip.decompress(past.get(INDEX)) == gzip.decompress(whole), "made anew"
        for name in past.names():
            if f"/{keys[0]}/" in name:
                past.remove(name)
        assert list(stored_facts(store, keys)) == [None, *expected[1:5]]
        remember(store, {})
        assert list(stored_facts(store, keys)) == [None, *expected[1:5]]
