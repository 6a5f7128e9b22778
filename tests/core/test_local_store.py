"""A store in a folder: what every store promises, whatever call is the last; and what only a folder can."""

import errno
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from store_contract import PLAIN, RESUMABLE, Call, Machine, Past, StoreContract, make, recipe

from liverseg_core.artifacts.artifact import Artifact, Recipe, Stage, load, verify
from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.artifacts.produce import Store, produce
from liverseg_core.errors import ExitCode, LiversegError

CALLS = [
    (os, "fsync"),
    (pathlib.Path, "replace"),
    (pathlib.Path, "rename"),
    (pathlib.Path, "mkdir"),
    (os, "open"),
    (shutil, "rmtree"),
]


class Folder(Past):
    """A store's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> set[str]:
        found = (path for path in self.root.rglob("*") if path.is_file() or not any(path.iterdir()))
        return {str(path.relative_to(self.root)) for path in found}

    def get(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def put(self, name: str, data: bytes) -> None:
        (self.root / name).parent.mkdir(exist_ok=True)
        (self.root / name).write_bytes(data)

    def remove(self, name: str) -> None:
        (self.root / name).unlink()
        for folder in (self.root / name).parents:  # a bucket has no empty ones either
            if any(folder.iterdir()):
                break
            folder.rmdir()

    def folder(self, stage: Stage, made: Artifact) -> str:
        return f"{stage.folder}/{made.key}"


def complete_or_absent(root: Path) -> None:
    for path in root.glob("*/*"):
        if path.is_dir() and not path.name.startswith("."):
            found = load(path)
            assert found is not None, "a folder of a final name has its manifest"
            verify(found)


class TestLocalStore(StoreContract):
    @pytest.fixture
    def machine(self, tmp_path: Path) -> Machine:
        """Machines share the folder."""
        return lambda _name, part="": LocalStore(tmp_path / "store" / part)

    @pytest.fixture
    def past(self, tmp_path: Path) -> Past:
        return Folder(tmp_path / "store")

    @pytest.fixture(
        params=[(call, stage) for call in CALLS for stage in (PLAIN, RESUMABLE)],
        ids=lambda param: f"{param[0][1]}-{param[1].name}",
    )
    def call(self, request: pytest.FixtureRequest) -> Call:
        (owner, name), stage = request.param
        return Call((owner,), name, stage, may_be_rare=name == "rmtree")

    def whole_or_absent(self, store: Store, one: Recipe) -> None:
        super().whole_or_absent(store, one)
        assert isinstance(store, LocalStore)
        complete_or_absent(store.root)


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
