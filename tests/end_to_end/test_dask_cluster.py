"""A Dask cluster of the user's own, started as the deployment page says."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

pytestmark = [pytest.mark.slow, pytest.mark.whole]

Run = Callable[..., Any]
DASK = str(Path(sys.executable).with_name("dask"))
MALLOC = {"MALLOC_TRIM_THRESHOLD_": "268435456", "MALLOC_MMAP_THRESHOLD_": "33554432"}


@pytest.fixture
def cluster(
    free_port: Callable[[], int], service_environment: dict[str, str], tmp_path: Path
) -> Iterator[str]:
    """The address of `dask scheduler` with a `dask worker` of two processes."""
    address = f"tcp://127.0.0.1:{(port := free_port())}"
    host = ["--host", "127.0.0.1"]
    commands = [
        ["scheduler", *host, "--port", str(port), "--no-dashboard"],
        ["worker", address, *host, "--nthreads", "1", "--nworkers", "2", "--memory-limit", "1GB"],
    ]
    environment = service_environment | MALLOC
    processes = []
    with (tmp_path / "dask.log").open("wb") as log:
        for command in commands:
            everything = {"env": environment, "cwd": tmp_path, "stdout": log, "stderr": log}
            processes.append(subprocess.Popen([DASK, *command], start_new_session=True, **everything))
    try:
        yield address
    finally:
        for process in reversed(processes):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def files(store: Path) -> dict[str, Any]:
    return {
        path.parts[-2]: json.loads(path.read_text())["files"] for path in store.glob("cases/*/manifest.json")
    }


def test_ingest_on_a_cluster(
    liverseg: Run, cluster: str, phantom: Path, tiny: Path, ingested: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    done = liverseg("ingest", phantom, "--store", store, "--config", tiny, "--dask", cluster, "--json").ok()
    assert done.data["made"] == 7
    assert files(store) == files(ingested)
    with Client(cluster, set_as_default=False) as client:
        assert len(client.run(os.getpid)) == 2
        for name, value in MALLOC.items():
            assert set(client.run(os.getenv, name).values()) == {value}, "Dask's own would be smaller"
