"""The real command line in real processes, a small phantom, and settings that train in seconds."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import LIVERSEG, Ended, Process, run_to_end, start_command

ROOT = Path(__file__).parents[2]
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
WARM = Path(__file__).parents[1] / "warm.py"
PHANTOM = ("--unlabelled", "1", "--size", "64,64,40")
TINY = """
compute: {workers: 0}
ingest: {spacing_mm: [5, 5, 5]}
split: {validation: 2}
train:
  network: {channels: [4, 8], residual_units: 0}
  patch_size: [32, 32, 32]
  batch_size: 2
  steps: 100
  checkpoint_every: 4
  learning_rate: 0.02
"""
Run = Callable[..., Ended]
Start = Callable[..., Process]


@dataclass(frozen=True)
class Stored:
    """A store that the whole flow filled, and how that went."""

    path: Path
    source: Path
    config: Path
    ended: Ended


@pytest.fixture(scope="session")
def command_environment(service_environment: dict[str, str]) -> dict[str, str]:
    """The environment of the commands: several processes at once, so each keeps to one thread of torch."""
    return service_environment | {"COLUMNS": "100", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def warm(shared: Any, command_environment: dict[str, str]) -> str:
    """The socket of a process that has every library loaded, and forks commands."""

    def start(folder: Path) -> Any:
        path = folder / "socket"
        return [sys.executable, str(WARM), str(path), LIVERSEG], command_environment, path.exists, str(path)

    return str(shared.started("warm", start))


@pytest.fixture(scope="session")
def start(warm: str, command_environment: dict[str, str], prefect_server: str) -> Iterator[Start]:
    """A function that starts `liverseg` with these arguments, in a process group of its own.

    Its flows run on the tests' Prefect server, unless `PREFECT_API_URL` says otherwise.
    """
    started: list[Process] = []
    # It serves no pages: with a link to them no two reports would be the same.
    environment = command_environment | {"PREFECT_API_URL": prefect_server, "PREFECT_UI_URL": ""}

    def call(*arguments: object, **changes: str) -> Process:
        process = start_command(warm, [str(one) for one in arguments], environment, changes)
        started.append(process)
        return process

    yield call
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="session")
def liverseg(start: Start) -> Run:
    """A function that runs `liverseg` with these arguments to its end."""

    def call(*arguments: object, **changes: str) -> Ended:
        begun = time.monotonic()
        return run_to_end(start(*arguments, **changes), begun)

    return call


@pytest.fixture(scope="session")
def phantom(liverseg: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Decathlon tar of six labelled cases and an unlabelled one."""
    path = tmp_path_factory.mktemp("phantom") / "phantom.tar"
    liverseg("phantom", path, "--cases", 6, *PHANTOM).ok()
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings that train in a second or two, to a liver Dice of about a half."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def stored(liverseg: Run, phantom: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """A store that `liverseg run` filled; tests add to it and change nothing in it."""
    store = tmp_path_factory.mktemp("store") / "store"
    ended = liverseg("run", phantom, "--config", tiny, "--store", store).ok()
    return Stored(store, phantom, tiny, ended)


@pytest.fixture(scope="session")
def ingested(liverseg: Run, phantom: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds the cases alone; tests copy it."""
    store = tmp_path_factory.mktemp("ingested") / "store"
    liverseg("ingest", phantom, "--config", tiny, "--store", store, "--workers", 0).ok()
    return store


def _copy_checkout(folder: Path) -> Path:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter((lambda name: (ROOT / name).exists()), listed.splitlines()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def copy_checkout() -> Callable[[Path], Path]:
    """A function that copies the files git knows, as they are now, into a folder, and returns it."""
    return _copy_checkout


def _bare_debian(root: Path) -> Path:
    include = "--include=python3,python3-venv,ca-certificates"
    command = ["debootstrap", "--variant=minbase", include, "bookworm", str(root)]
    subprocess.run(command, check=True, capture_output=True, timeout=3000)
    if CERTIFICATES.exists():  # this machine's, which may know one more authority
        shutil.copy(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
    return root


@pytest.fixture(scope="session")
def bare_debian() -> Callable[[Path], Path]:
    """A function that makes a folder the root of the smallest Debian 12 with Python, and returns it."""
    return _bare_debian


def manifests(store: Path) -> dict[str, int]:
    """When each artifact of a store was completed: `folder/key` → nanoseconds."""
    found = store.glob("*/[!.]*/manifest.json")  # what is staged is not complete
    return {str(path.parent.relative_to(store)): path.stat().st_mtime_ns for path in found}


@pytest.fixture(scope="session")
def finished_at() -> Callable[[Path], dict[str, int]]:
    """`manifests`, for the test modules, which pytest imports without a package."""
    return manifests
