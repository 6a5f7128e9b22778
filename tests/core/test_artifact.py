"""The one cache: an artifact is complete or absent, whatever happens while it is made."""

import contextlib
import errno
import functools
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from liverseg_core.artifacts import artifact
from liverseg_core.artifacts.artifact import Artifact, Recipe, Stage, load, verify
from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.artifacts.produce import produce
from liverseg_core.artifacts.stages import EVALUATE, TRAIN
from liverseg_core.durable import write_atomically
from liverseg_core.errors import ExitCode, LiversegError
from liverseg_core.provenance import library_versions

PLAIN = Stage("plain", "plains", version=1)
RESUMABLE = Stage("resumable", "resumables", version=1, resumable=True)
CONTENT = {"a.bin": b"a" * 5000, "b/c.bin": b"c", "b/empty": b""}


def make(folder: Path) -> dict[str, object]:
    for name, data in CONTENT.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_bytes() != data:
            write_atomically(path, data)
    return {"answer": 42, "share": 0.1, "none": None}


def recipe(stage: Stage = PLAIN, **config: object) -> Recipe:
    return Recipe(stage, config, {"input": "x"})


def digests(made: Artifact) -> dict[str, str]:
    return {entry["path"]: entry["sha256"] for entry in made.manifest["files"]}


def complete_or_absent(store: Path) -> None:
    for path in store.glob("*/*"):
        if path.is_dir() and not path.name.startswith("."):
            found = load(path)
            assert found is not None, "a folder of a final name has its manifest"
            verify(found)


def test_made_once(tmp_path: Path) -> None:
    made = produce(LocalStore(tmp_path), recipe(), make)
    assert (made.cached, made.facts["answer"], made.key) == (False, 42, recipe().key)
    found = produce(LocalStore(tmp_path), recipe(), lambda folder: pytest.fail("made again"))
    assert found.cached
    assert found.manifest == made.manifest
    assert found.facts == made.facts
    assert sorted(digests(made)) == sorted(CONTENT)
    assert [path.name for path in (tmp_path / "plains").iterdir()] == [made.key], "no lock or staging stays"
    verify(found)


def test_key_changes_with_everything_that_decides_the_content() -> None:
    keys = {
        one.key
        for one in (
            recipe(),
            recipe(a=1),
            recipe(a="1"),
            recipe(b=1),
            Recipe(PLAIN, {}, {"input": "y"}),
            Recipe(PLAIN, {}, {}),
            recipe(Stage("plain", "plains", version=2)),
            recipe(Stage("other", "plains", version=1)),
            recipe(Stage("plain", "plains", version=1, libraries=("numpy",))),
        )
    }
    assert len(keys) == 9
    assert recipe(a=1, b=2).key == recipe(b=2, a=1).key
    assert recipe(Stage("plain", "elsewhere", version=1, resumable=True)).key == recipe().key


@pytest.mark.parametrize(
    ("stage", "key"),
    [(TRAIN, "a007ffac644ac1821bdf9adaffcbb388"), (EVALUATE, "2ede7b5badc400a2ef2702262b7d442c")],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_was_trained_in_monais_networks_keeps_its_key(
    stage: Stage, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of commit 0518d80, the last with networks of MONAI, under the libraries that it ran with."""
    then = {"torch": "2.13.0", "torchio": "1.2.1"}
    monkeypatch.setattr(artifact, "library_versions", lambda names: {name: then[name] for name in names})
    assert Recipe(stage, {"seed": 0}, {"data": "d" * 32}).key == key


CALLS = (
    "os.fsync",
    "pathlib.Path.replace",
    "pathlib.Path.rename",
    "pathlib.Path.mkdir",
    "os.open",
    "shutil.rmtree",
)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("stage", [PLAIN, RESUMABLE], ids=lambda stage: stage.name)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_at_any_commit_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, stage: Stage, after: bool
) -> None:
    """Stop before or after the n-th call of each kind, for every n; then the same command again."""
    expected = digests(produce(LocalStore(tmp_path / "expected"), recipe(stage), make))
    module, _, name = call.rpartition(".")
    owner = functools.reduce(getattr, module.split(".")[1:], sys.modules[module.split(".")[0]])
    real, crashed = getattr(owner, name), True
    for n in itertools.count():
        store, counter = tmp_path / str(n), itertools.count()

        def crash(
            *args: object, _counter: "itertools.count[int]" = counter, _n: int = n, **kwargs: object
        ) -> object:
            stop = next(_counter) == _n
            result = None if stop and not after else real(*args, **kwargs)
            if stop:
                raise KeyboardInterrupt
            return result

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, crash)
            try:
                produce(LocalStore(store), recipe(stage), make)
                crashed = False
            except KeyboardInterrupt:
                pass
        complete_or_absent(store)
        made = produce(LocalStore(store), recipe(stage), make)
        assert digests(made) == expected
        assert list((store / stage.folder).glob(".staging*/*")) == []
        if not crashed:
            break
    assert n > 0 or call == "shutil.rmtree"


MAKER = """
import sys, time
from pathlib import Path
from liverseg_core.artifacts.artifact import Recipe, Stage
from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.artifacts.produce import produce
from liverseg_core.durable import write_atomically
def make(folder):
    print("making", flush=True)
    for i in range(40):
        write_atomically(folder / f"{i}.bin", bytes([i]) * 1000)
        time.sleep(float(sys.argv[2]))
    return {}
store = LocalStore(Path(sys.argv[1]))
made = produce(store, Recipe(Stage("s", "s", 1, resumable=sys.argv[3] == "r"), {}, {}), make)
print(made.cached)
"""


def maker(store: Path, pause: float, resumable: bool = False) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", MAKER, str(store), str(pause), "r" if resumable else "-"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_sigkill_at_random_times(tmp_path: Path) -> None:
    whole = maker(tmp_path / "whole", 0)
    assert whole.communicate(timeout=300)[0].endswith("False\n")
    (expected,) = (tmp_path / "whole" / "s").iterdir()
    generator = random.Random(0)
    for n in range(5):
        store = tmp_path / str(n)
        process = maker(store, 0.004, resumable=n % 2 == 0)
        assert process.stdout
        assert process.stdout.readline() == "making\n"
        time.sleep(generator.uniform(0, 0.35))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=300)
        complete_or_absent(store)
        again = maker(store, 0, resumable=n % 2 == 0)
        _output, errors = again.communicate(timeout=300)
        assert again.returncode == 0, errors
        (made,) = (path for path in (store / "s").iterdir() if not path.name.endswith(".lock"))
        assert {entry.name: entry.read_bytes() for entry in made.glob("*.bin")} == {
            entry.name: entry.read_bytes() for entry in expected.glob("*.bin")
        }
        complete_or_absent(store)


def test_two_processes_never_make_the_same(tmp_path: Path) -> None:
    first = maker(tmp_path, 0.05)
    assert first.stdout
    assert first.stdout.readline() == "making\n"
    second = maker(tmp_path, 0)
    _, errors = second.communicate(timeout=300)
    assert second.returncode != 0
    assert "LS601" in errors
    assert f"process {first.pid} on {os.uname().nodename}" in errors
    assert first.communicate(timeout=300)[0] == "False\n"
    assert maker(tmp_path, 0).communicate(timeout=300)[0] == "True\n"


WRITER = """
import json, sys
from pathlib import Path
from liverseg_core.durable import write_atomically
for i in range(150):
    write_atomically(Path(sys.argv[1]), json.dumps([sys.argv[2]] * (i * 50)).encode())
"""


def test_two_writers_of_one_file_and_a_reader(tmp_path: Path) -> None:
    path = tmp_path / "latest.json"
    path.write_text("[]")
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in "ab"]
    while any(writer.poll() is None for writer in writers):
        assert len(set(json.loads(path.read_bytes()))) <= 1
    assert [writer.returncode for writer in writers] == [0, 0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["latest.json"]


@pytest.mark.parametrize(("stage", "kept"), [(PLAIN, False), (RESUMABLE, True)], ids=["plain", "resumable"])
def test_what_a_broken_off_make_leaves(tmp_path: Path, stage: Stage, kept: bool) -> None:
    def break_off(folder: Path) -> dict[str, object]:
        (folder / "progress").write_text("half")
        (folder / "deep").mkdir()
        (folder / "deep" / ".x.part").write_text("torn")
        (folder / ".manifest.json.part").write_text("torn")
        raise LiversegError("LS318", "x", "y", "z")

    with pytest.raises(LiversegError, match="LS318"):
        produce(LocalStore(tmp_path), recipe(stage), break_off)
    complete_or_absent(tmp_path)
    seen: list[str] = []

    def go_on(folder: Path) -> dict[str, object]:
        seen.extend(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        return make(folder)

    made = produce(LocalStore(tmp_path), recipe(stage), go_on)
    assert seen == (["progress"] if kept else []), "torn files never stay"
    assert sorted(digests(made)) == sorted([*CONTENT, *seen])
    verify(made)


def fail_with(number: int, call: Callable[..., object]) -> Callable[..., object]:
    def fail(*args: object, **kwargs: object) -> object:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.rename"])
def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(call, fail_with(errno.ENOSPC, os.fsync))
        with pytest.raises(LiversegError, match="LS701") as caught:
            produce(LocalStore(tmp_path), recipe(), make)
    assert caught.value.exit_code == ExitCode.RESOURCES == 7
    complete_or_absent(tmp_path)
    verify(produce(LocalStore(tmp_path), recipe(), make))


def test_unwritable_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LiversegError, match="LS203") as caught:
        produce(LocalStore(tmp_path / "file" / "store"), recipe(), make)
    assert caught.value.exit_code == ExitCode.USAGE == 2


def test_a_damaged_manifest_is_named(build: SimpleNamespace, tmp_path: Path) -> None:
    made = produce(LocalStore(tmp_path), recipe(), make)
    path = made.path / "manifest.json"
    whole = path.read_bytes()
    generator = random.Random(0)
    damaged = [b"", b"null", b"[]", b"{}", b"\xff", whole[:-2], whole.replace(b"42", b"43"), b"[" * 100_000]
    for _ in range(200):
        flipped = bytearray(whole)
        flipped[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        same = False
        with contextlib.suppress(ValueError):
            same = json.loads(flipped) == json.loads(whole)
        damaged += [] if same else [bytes(flipped)]
    for content in damaged:
        path.write_bytes(content)
        assert build.refusal(load, made.path) == "LS501"
        assert build.refusal(produce, LocalStore(tmp_path), recipe(), make) == "LS501"
    path.write_bytes(whole)
    moved = made.path.rename(made.path.with_name("another key"))
    assert build.refusal(load, moved) == "LS501", "a manifest speaks of its own folder only"
    path.unlink(missing_ok=True)


def test_a_folder_without_manifest_is_made_anew(tmp_path: Path) -> None:
    made = produce(LocalStore(tmp_path), recipe(), make)
    (made.path / "manifest.json").unlink()
    (made.path / "a.bin").write_bytes(b"old")
    again = produce(LocalStore(tmp_path), recipe(), make)
    assert not again.cached
    assert digests(again) == digests(made)


@pytest.mark.parametrize(
    ("name", "trouble"),
    [
        ("missing", "a.bin is missing"),
        ("changed", "b/c.bin does not match"),
        ("longer", "a.bin does not match"),
        ("extra", "b/new is not in the manifest"),
    ],
)
def test_verify_names_the_file(tmp_path: Path, name: str, trouble: str) -> None:
    made = produce(LocalStore(tmp_path), recipe(), make)
    if name == "missing":
        (made.path / "a.bin").unlink()
    elif name == "changed":
        (made.path / "b" / "c.bin").write_bytes(b"d")
    elif name == "longer":
        (made.path / "a.bin").write_bytes(b"a" * 5001)
    else:
        (made.path / "b" / "new").write_bytes(b"")
    with pytest.raises(LiversegError, match=f"LS502.*{trouble}"):
        verify(made)


def test_large_files_are_only_sized_when_asked(tmp_path: Path) -> None:
    made = produce(LocalStore(tmp_path), recipe(), make)
    (made.path / "a.bin").write_bytes(b"b" * 5000)
    verify(made, read_up_to=4999)
    with pytest.raises(LiversegError, match="LS502"):
        verify(made, read_up_to=5000)
    assert library_versions(("numpy",)).keys() == {"numpy"}
