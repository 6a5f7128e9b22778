"""Mapping over cases: Dask gives what the serial runner gives, and one bad case stops itself alone."""

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

from flows.local_cluster import as_many_as_fit, replace_workers
from flows.runners import PROCESS_BYTES, USABLE, DaskRunner, open_runner
from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.cases.ingest import ingest_case
from liverseg_core.cases.store import open_case
from liverseg_core.config import ComputeConfig, IngestConfig
from liverseg_core.errors import LiversegError
from liverseg_core.phantom.dataset import PhantomSpec, write_phantom_tar
from liverseg_core.runners import Outcome, Runner, SerialRunner
from liverseg_core.sources.source import CaseSource, Member, open_source

MEMORY = 500_000_000


@pytest.fixture(scope="module")
def one_worker() -> Iterator[DaskRunner]:
    """A real local cluster."""
    with open_runner(ComputeConfig(workers=1)) as runner:
        assert isinstance(runner, DaskRunner)
        yield runner


@pytest.fixture(scope="module")
def two_workers() -> Iterator[DaskRunner]:
    """A real local cluster whose workers have half a gigabyte each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distributed.system.MEMORY_LIMIT", 2 * MEMORY)
        with open_runner(ComputeConfig(workers=2)) as runner:
            assert isinstance(runner, DaskRunner)
            yield runner


@pytest.fixture(params=["one_worker", "two_workers"])
def dask(request: pytest.FixtureRequest) -> DaskRunner:
    runner: DaskRunner = request.getfixturevalue(request.param)
    return runner


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


def ingest(runner: Runner, cases: tuple[CaseSource, ...], store: Path) -> list[Outcome]:
    # importable by name: a worker knows no test module
    work = functools.partial(ingest_case, config=IngestConfig(spacing_mm=(4, 4, 4)), store=LocalStore(store))
    return sorted(runner.map(work, cases), key=lambda outcome: outcome.item.case)


@pytest.fixture(scope="module")
def serially(
    cases: tuple[CaseSource, ...], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Outcome], Path]:
    """What the serial runner makes of the cases, and the store it fills."""
    store = tmp_path_factory.mktemp("serial")
    return ingest(SerialRunner(), cases, store), store


def test_dask_is_serial_byte_for_byte(
    dask: DaskRunner, cases: tuple[CaseSource, ...], serially: tuple[list[Outcome], Path], tmp_path: Path
) -> None:
    expected, store = serially
    found = ingest(dask, cases, tmp_path)
    assert [outcome.item for outcome in expected] == [outcome.item for outcome in found]
    for serial, parallel in zip(expected, found, strict=True):
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
        {name: data for name, data in files(which).items() if ".staging" not in name}
        for which in (store, tmp_path)
    )
    assert len(serial) > 5 * 5
    assert parallel == serial


def test_a_giant_is_refused_and_the_others_finish(
    two_workers: DaskRunner, cases: tuple[CaseSource, ...], tmp_path: Path
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
        memory_limit=two_workers.memory_per_task,
    )
    pids = two_workers.client.run(os.getpid)
    outcomes = {outcome.item.case: outcome for outcome in two_workers.map(work, [huge, *cases])}
    assert two_workers.client.run(os.getpid) == pids
    error = outcomes.pop("giant").error
    assert error
    assert (error.code, error.exit_code) == ("LS703", 7)
    assert re.search(r"giant needs 1[7-9]\d MB .* a task has 150 MB", error.what)
    assert [case for case, outcome in sorted(outcomes.items()) if outcome.error] == [cases[2].case]
    assert sum(outcome.result is not None for outcome in outcomes.values()) == 5


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


@pytest.mark.trouble("2.11")
def test_what_nobody_foresaw_stops_its_item_alone(dask: Runner) -> None:
    class OddError(Exception):
        def __init__(self, first: int, second: int) -> None:  # which no pickle can make anew
            super().__init__()

    def divide(n: int) -> float:
        if n > 2:
            raise OddError(n, n)
        return 1 / n

    for runner in (SerialRunner(), dask):
        outcomes = {outcome.item: outcome for outcome in runner.map(divide, [1, 0, 2, 3])}
        assert [outcomes[n].result for n in (1, 0, 2, 3)] == [1.0, None, 0.5, None]
        for n, name in ((0, "ZeroDivisionError: division by zero"), (3, "OddError")):
            said = f"LS222: {n} failed as nobody foresaw: {name} (test_runners.py, line "
            assert str(outcomes[n].error).startswith(said)


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


@pytest.mark.trouble("2.2")
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


def lose_worker_for_good(runner: DaskRunner) -> None:
    """As when the nanny can't start one."""
    (nanny,) = runner.client.cluster.workers.values()
    runner.client.cluster.sync(nanny.close)


@pytest.mark.trouble("2.2")
def test_a_worker_that_is_gone_for_good_is_replaced(
    one_worker: DaskRunner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("flows.runners.LOOK_S", 0.1)
    monkeypatch.setattr("flows.runners.NO_WORKER_S", 1)
    lose_worker_for_good(one_worker)
    assert sorted(outcome.result for outcome in one_worker.map(abs, range(20))) == list(range(20))
    said = [record.getMessage() for record in caplog.records if record.name == "flows.runners"]
    assert said == ["Dask: no worker has taken work for 1 s; starting new ones"]


@pytest.mark.trouble("2.2")
def test_no_worker_that_starts_is_said_in_a_line(
    one_worker: DaskRunner, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import dask

    monkeypatch.setattr("flows.runners.LOOK_S", 0.1)
    monkeypatch.setattr("flows.runners.NO_WORKER_S", 1)
    lose_worker_for_good(one_worker)
    started = time.monotonic()
    with dask.config.set({"distributed.worker.preload": ["no_such_module"]}):
        with pytest.raises(LiversegError, match=r"LS403.* new ones do not start: .*") as caught:
            list(one_worker.map(abs, range(3)))
        with pytest.raises(LiversegError, match=r"LS402: .*") as first, open_runner(ComputeConfig(workers=1)):
            pass
    assert time.monotonic() - started < 60
    assert "\n" not in str(caught.value) + str(first.value)
    assert capfd.readouterr().err == ""
    replace_workers(one_worker.client.cluster, 60)


def test_a_worker_whose_memory_stays_full_is_replaced(
    two_workers: DaskRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Dask gives it nothing more to do."""
    monkeypatch.setattr("flows.runners.LOOK_S", 0.1)
    monkeypatch.setattr("flows.runners.NO_WORKER_S", 1)

    def keep(n: int) -> int:
        if "kept" not in sys.modules and len(list(tmp_path.iterdir())) < 2:
            (tmp_path / str(os.getpid())).touch()
            filling = int(MEMORY * 0.87) - psutil.Process().memory_info().rss
            sys.modules["kept"] = b"x" * filling  # type: ignore[assignment]
            time.sleep(0.5)  # for Dask to look
        return os.getpid()

    pids = {outcome.result for outcome in two_workers.map(keep, range(12))}
    full = {int(path.name) for path in tmp_path.iterdir()}
    assert len(full) == 2
    assert full < pids


def test_the_memory_of_a_task(one_worker: DaskRunner, two_workers: DaskRunner) -> None:
    """The smallest worker's share; of this process, what the machine has."""
    assert two_workers.memory_per_task == int(MEMORY * USABLE) - PROCESS_BYTES
    available = psutil.virtual_memory().available
    assert SerialRunner().memory_per_task == pytest.approx(available, rel=0.3)
    assert one_worker.memory_per_task
    assert one_worker.memory_per_task > MEMORY


@pytest.mark.parametrize(
    ("cores", "memory", "workers"), [(2, 10**10, 2), (64, 16 * 10**9, 26), (4, 10**8, 1)]
)
def test_no_more_workers_than_memory_for_them(
    monkeypatch: pytest.MonkeyPatch, cores: int, memory: int, workers: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", memory)
    assert as_many_as_fit() == workers


def test_no_scheduler(tmp_path: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.runners.WORKER_WAIT_S", 0.5)
    compute = ComputeConfig(dask=f"tcp://127.0.0.1:{free_port()}")
    with pytest.raises(LiversegError, match="LS402"), open_runner(compute):
        pass


def test_tls_without_certificates_is_refused_at_once() -> None:
    """A client would try for ever."""
    compute = ComputeConfig(dask="tls://127.0.0.1:9999")
    with pytest.raises(LiversegError, match="LS201: there are no certificates"), open_runner(compute):
        pass


def start(role: str, *options: str) -> "subprocess.Popen[bytes]":
    """A process of a cluster of the user's own."""
    quiet = ["--host", "127.0.0.1", "--no-dashboard"]
    command = [sys.executable, "-m", f"distributed.cli.dask_{role}", *options, *quiet]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


@pytest.fixture
def theirs(free_port: Callable[[], int]) -> Iterator[tuple[str, dict[str, "subprocess.Popen[bytes]"]]]:
    """A cluster of the user's own: its address, a scheduler and two workers."""
    port = str(free_port())
    address = f"tcp://127.0.0.1:{port}"
    worker = ["worker", address, "--no-nanny"]
    processes = {
        "scheduler": start("scheduler", "--port", port),
        "two threads": start(*worker, "--nthreads", "2", "--memory-limit", "2GB"),
        "no limit": start(*worker, "--nthreads", "1", "--memory-limit", "0"),
    }
    yield address, processes
    for process in processes.values():
        process.kill()
        process.wait()


def test_a_cluster_of_the_users_own_that_goes_away(
    theirs: tuple[str, dict[str, "subprocess.Popen[bytes]"]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads share a worker's memory, and one without a limit says nothing; then all fail in turn."""
    monkeypatch.setattr("flows.runners.LOOK_S", 0.1)
    monkeypatch.setattr("flows.runners.NO_WORKER_S", 1)

    def wait(n: int) -> int:
        time.sleep(0.2)
        return n

    def lose(runner: DaskRunner, how: signal.Signals, *names: str) -> str:
        outcomes = runner.map(wait, range(100))
        assert next(outcomes).error is None
        for name in names:
            processes[name].send_signal(how)
        with pytest.raises(LiversegError, match="LS403") as caught:
            list(outcomes)
        assert "\n" not in str(caught.value)
        return caught.value.what

    address, processes = theirs
    with open_runner(ComputeConfig(dask=address)) as runner:
        assert isinstance(runner, DaskRunner)
        runner.client.wait_for_workers(2, timeout=60)
        assert runner.memory_per_task == (2 * 10**9 * USABLE - PROCESS_BYTES) // 2
        lost = lose(runner, signal.SIGKILL, "two threads", "no limit")
        assert lost == "Dask stopped answering (no worker has taken work for 1 s)"
        processes["another"] = start("worker", address, "--no-nanny")
        runner.client.wait_for_workers(1, timeout=60)
        lose(runner, signal.SIGSTOP, "scheduler")
        processes["scheduler"].send_signal(signal.SIGCONT)
        lose(runner, signal.SIGKILL, "scheduler")


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
