"""Mapping over cases: Dask gives what the serial runner gives, and one bad case stops itself alone."""

import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
from isal import igzip

from flows.runners import PROCESS_BYTES, USABLE, DaskRunner, _as_many_as_fit, open_runner
from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.cases.ingest import ingest_case
from liverseg_core.cases.store import open_case
from liverseg_core.config import ComputeConfig, IngestConfig
from liverseg_core.errors import LiversegError
from liverseg_core.phantom.dataset import PhantomSpec, write_phantom_tar
from liverseg_core.runners import Outcome, Runner, SerialRunner
from liverseg_core.sources.source import CaseSource, Member, open_source


@pytest.fixture(scope="module", params=[1, 2], ids=["one-worker", "two-workers"])
def dask(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """A real local cluster."""
    with open_runner(ComputeConfig(workers=request.param)) as runner:
        yield runner


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[CaseSource, ...]:
    """Four labelled and two unlabelled cases; the third image is cut short on the way in."""
    path = tmp_path_factory.mktemp("phantom") / "phantom.tar"
    write_phantom_tar(path, PhantomSpec(cases=4, unlabelled=2, size=(40, 40, 24)))
    content = bytearray(path.read_bytes())
    image = open_source(str(path)).cases[2].image
    content[image.offset + image.size // 2] ^= 1
    path.write_bytes(content)
    return open_source(str(path)).cases


def files(store: Path) -> dict[str, bytes]:
    """Every file of every case; manifests say when and how long, so they are left out."""
    paths = (path for path in store.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(store)): path.read_bytes() for path in paths if path.suffix != ".lock"}


def test_dask_is_serial_byte_for_byte(dask: Runner, cases: tuple[CaseSource, ...], tmp_path: Path) -> None:
    found: dict[str, list[Outcome]] = {}
    for name, runner in {"serial": SerialRunner(), "dask": dask}.items():
        # importable by name: a worker knows no test module
        work = functools.partial(
            ingest_case, config=IngestConfig(spacing_mm=(4, 4, 4)), store=LocalStore(tmp_path / name)
        )
        found[name] = sorted(runner.map(work, cases), key=lambda outcome: outcome.item.case)
    assert [outcome.item for outcome in found["serial"]] == [outcome.item for outcome in found["dask"]]
    for serial, parallel in zip(found["serial"], found["dask"], strict=True):
        assert (serial.error is None) == (parallel.error is None)
        if serial.error and parallel.error:
            assert str(parallel.error) == str(serial.error)
            assert parallel.error.code == "LS311"
            assert serial.item == cases[2]
        else:
            assert serial.result.key == parallel.result.key
            assert serial.result.facts == parallel.result.facts
            open_case(parallel.result.path)
    serial, parallel = (
        {name: data for name, data in files(tmp_path / which).items() if ".staging" not in name}
        for which in ("serial", "dask")
    )
    assert len(serial) > 5 * 5
    assert parallel == serial


def test_outcomes_of_many_items(dask: Runner) -> None:
    """More items than are in flight; each once, with its own result or its own error."""

    def halve(n: int) -> int:
        if n % 7 == 3:
            raise LiversegError("LS318", f"item {n}", "even", "x")
        return n // 2

    for runner in (SerialRunner(), dask):
        outcomes = {outcome.item: outcome for outcome in runner.map(halve, range(40))}
        assert sorted(outcomes) == list(range(40))
        for n, outcome in outcomes.items():
            if n % 7 == 3:
                assert outcome.error
                assert outcome.error.what == f"item {n}"
                assert outcome.result is None
            else:
                assert outcome.error is None
                assert outcome.result == n // 2
    assert list(dask.map(halve, [])) == []


def test_a_bug_ends_the_map(dask: Runner) -> None:
    def divide(n: int) -> float:
        return 1 / n

    for runner in (SerialRunner(), dask):
        with pytest.raises(ZeroDivisionError):
            list(runner.map(divide, [1, 0, 2]))
        assert [outcome.result for outcome in runner.map(divide, [1])] == [1.0], "the next map works"


def test_equal_items_are_worked_on_each(dask: Runner) -> None:
    def name_of(n: int) -> int:
        return os.getpid() * 0 + n

    assert [outcome.result for outcome in dask.map(name_of, [5, 5, 5])] == [5, 5, 5]


def deadly(folder: Path, item: int) -> Callable[[int], int]:
    def work(n: int) -> int:
        (folder / f"{n}-{time.monotonic_ns()}").touch()
        if n == item:
            os.kill(os.getpid(), signal.SIGKILL)
        return n * 2

    return work


def test_an_item_that_kills_its_worker_is_blamed_alone(dask: Runner, tmp_path: Path) -> None:
    started = time.monotonic()
    outcomes = {outcome.item: outcome for outcome in dask.map(deadly(tmp_path, 3), range(8))}
    assert time.monotonic() - started < 120
    assert sorted(outcomes) == list(range(8))
    assert [n for n, outcome in outcomes.items() if outcome.error] == [3]
    assert outcomes[3].error
    assert outcomes[3].error.code == "LS702"
    assert outcomes[3].error.exit_code == 7
    assert all(outcomes[n].result == n * 2 for n in outcomes if n != 3)


@pytest.fixture(scope="module")
def small_workers() -> Iterator[DaskRunner]:
    """Two workers with half a gigabyte each."""
    from distributed import Client, LocalCluster

    address = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=MEMORY, **address) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield DaskRunner(client)


MEMORY = 500_000_000


def test_a_giant_is_refused_and_the_others_finish(
    small_workers: DaskRunner, cases: tuple[CaseSource, ...], tmp_path: Path
) -> None:
    """By name, with what it needs and what there is, before it takes anything: no worker dies."""
    shape, affine = (400, 400, 500), np.diag([1.0, 1, 1, 1])[[0, 2, 1, 3]]  # stacked along y: held whole
    giant = nib.Nifti1Image(np.zeros(shape, np.int16), affine)
    path = tmp_path / "giant.nii.gz"
    path.write_bytes(igzip.compress(giant.to_bytes(), 0, mtime=0))
    huge = CaseSource("giant", Member(path, path.name, 0, path.stat().st_size, "digest"), None)
    work = functools.partial(
        ingest_case,
        config=IngestConfig(spacing_mm=(4, 4, 4)),
        store=LocalStore(tmp_path / "store"),
        memory_limit=small_workers.memory_per_task,
    )
    pids = small_workers.client.run(os.getpid)
    outcomes = {outcome.item.case: outcome for outcome in small_workers.map(work, [huge, *cases])}
    assert small_workers.client.run(os.getpid) == pids
    error = outcomes.pop("giant").error
    assert error
    assert (error.code, error.exit_code) == ("LS703", 7)
    assert re.search(r"giant needs 1[7-9]\d MB .* a task has 150 MB", error.what)
    assert [case for case, outcome in sorted(outcomes.items()) if outcome.error] == [cases[2].case]
    assert sum(outcome.result is not None for outcome in outcomes.values()) == 5


def test_the_memory_of_a_task(small_workers: DaskRunner) -> None:
    """The smallest worker's share; of this process, what the machine has."""
    assert small_workers.memory_per_task == int(MEMORY * USABLE) - PROCESS_BYTES
    available = psutil.virtual_memory().available
    assert SerialRunner().memory_per_task == pytest.approx(available, rel=0.3)
    with open_runner(ComputeConfig(workers=1)) as runner:
        assert runner.memory_per_task
        assert runner.memory_per_task > MEMORY


@pytest.mark.parametrize(
    ("cores", "memory", "workers"), [(2, 10**10, 2), (64, 16 * 10**9, 26), (4, 10**8, 1)]
)
def test_no_more_workers_than_memory_for_them(
    monkeypatch: pytest.MonkeyPatch, cores: int, memory: int, workers: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", memory)
    assert _as_many_as_fit() == workers


def test_a_share_for_each_thread(free_port: Callable[[], int]) -> None:
    """Two threads share a worker's memory, and a worker without a limit says nothing."""
    module, quiet = [sys.executable, "-m"], ["--host", "127.0.0.1", "--no-dashboard"]
    address = f"tcp://127.0.0.1:{free_port()}"
    worker = [*module, "distributed.cli.dask_worker", address, "--no-nanny", *quiet]
    commands = (
        [*module, "distributed.cli.dask_scheduler", "--port", address.rpartition(":")[2], *quiet],
        [*worker, "--nthreads", "2", "--memory-limit", "2GB"],
        [*worker, "--nthreads", "1", "--memory-limit", "0"],
    )
    with contextlib.ExitStack() as stack:
        for command in commands:
            stack.enter_context(_started(command))
        with open_runner(ComputeConfig(dask=address)) as runner:
            assert isinstance(runner, DaskRunner)
            runner.client.wait_for_workers(2, timeout=60)
            assert runner.memory_per_task == (2 * 10**9 * USABLE - PROCESS_BYTES) // 2


def test_no_scheduler(tmp_path: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.runners.WORKER_WAIT_S", 2)
    compute = ComputeConfig(dask=f"tcp://127.0.0.1:{free_port()}")
    with pytest.raises(LiversegError, match="LS402"), open_runner(compute):
        pass


def test_tls_without_certificates_is_refused_at_once() -> None:
    """A client would try for ever."""
    compute = ComputeConfig(dask="tls://127.0.0.1:9999")
    with pytest.raises(LiversegError, match="LS201: there are no certificates"), open_runner(compute):
        pass


def test_a_scheduler_that_goes_away(free_port: Callable[[], int]) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    module, quiet = [sys.executable, "-m"], ["--host", "127.0.0.1", "--no-dashboard"]
    commands = (
        [*module, "distributed.cli.dask_scheduler", "--port", address.rpartition(":")[2], *quiet],
        [*module, "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny", *quiet],
    )
    with contextlib.ExitStack() as stack:
        scheduler, _ = (stack.enter_context(_started(command)) for command in commands)

        def wait(n: int) -> int:
            time.sleep(0.2)
            return n

        with open_runner(ComputeConfig(dask=address)) as runner:
            outcomes = runner.map(wait, range(100))
            assert next(outcomes).error is None
            scheduler.kill()
            with pytest.raises(LiversegError, match="LS403") as caught:
                list(outcomes)
            assert "\n" not in str(caught.value)


@contextlib.contextmanager
def _started(command: list[str]) -> "Iterator[subprocess.Popen[bytes]]":
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_serial_when_asked() -> None:
    with open_runner(ComputeConfig(workers=0)) as runner:
        assert isinstance(runner, SerialRunner)


def test_dask_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sets one thread for its workers in this process, where training then would use one too."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = dict(os.environ)
    with open_runner(ComputeConfig(workers=1)) as runner:
        (outcome,) = runner.map(os.getenv, ["OMP_NUM_THREADS"])
    assert outcome.result == "1"
    assert dict(os.environ) == before
