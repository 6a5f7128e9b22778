"""Killed at the worst moments and started again: nothing finished is done twice, the bits are the same."""

import functools
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

pytestmark = pytest.mark.slow

Run = Callable[..., Any]
Start = Callable[..., subprocess.Popen[str]]
Times = Callable[[Path], dict[str, int]]
WAIT_S = 600.0
# long enough that a kill lands in the middle, and with something to lose between two checkpoints
LONG = ["--set", "train.steps=240", "--set", "train.checkpoint_every=16"]


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Return when the condition holds; fail when the process ends before."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert process.poll() is None, f"it ended too early: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def kill(process: subprocess.Popen[str]) -> None:
    """Kill the main process alone, and see every process that it had started end by itself."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive, f"orphans: {[orphan.cmdline() for orphan in alive]}"


def checkpoints(store: Path) -> list[Path]:
    return sorted(store.glob("models/.staging-*/checkpoints/step-*.pt"))


def reached(store: Path, least: int) -> bool:
    return any(int(path.stem.removeprefix("step-")) > least for path in checkpoints(store))


def files(store: Path, *folders: str) -> dict[str, Any]:
    """Every file of the artifacts in these folders, with its digest."""
    found = {}
    for folder in folders:
        for path in store.glob(f"{folder}/*/manifest.json"):
            found[f"{folder}/{path.parent.name}"] = json.loads(path.read_text())["files"]
    return found


def runs(store: Path) -> list[tuple[str, str]]:
    """MLflow's runs: id and status, from its database itself."""
    with sqlite3.connect(store / "mlflow.db") as database:
        return database.execute("select run_uuid, status from runs").fetchall()


@pytest.fixture
def store(ingested: Path, tmp_path: Path) -> Path:
    """A store of its own with the cases in it."""
    return Path(shutil.copytree(ingested, tmp_path / "store"))


@pytest.fixture(scope="session")
def uninterrupted(
    liverseg: Run, ingested: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What a training and evaluation leave that nobody disturbed."""
    path = Path(shutil.copytree(ingested, tmp_path_factory.mktemp("uninterrupted") / "store"))
    liverseg("evaluate", "--config", tiny, "--store", path, *LONG).ok()
    return path


@pytest.mark.whole
def test_ingest_goes_on_after_a_kill(
    liverseg: Run, start: Start, finished_at: Times, ingested: Path, tiny: Path, tmp_path: Path
) -> None:
    """Workers die with the process; finished cases stay as they are; all cases end as if nothing had been."""
    # more voxels than the other tests have: a case must take a while
    source, store, fresh = tmp_path / "source.tar", tmp_path / "store", tmp_path / "fresh"
    liverseg("phantom", source, "--cases", 8, "--unlabelled", 0, "--size", "96,96,64").ok()
    arguments = ["--set", "ingest.spacing_mm=[1.5,1.5,1.5]", "--workers", 2]
    process = start("ingest", source, "--store", store, *arguments)
    wait_for(lambda: len(finished_at(store)) >= 2, process)
    kill(process)
    before = finished_at(store)
    assert 2 <= len(before) < 8, "the kill was meant to land in the middle"
    done = liverseg("ingest", source, "--store", store, *arguments, "--json").ok().data
    assert done["made"] == 8 - len(before)
    after = finished_at(store)
    assert {name: after[name] for name in before} == before
    liverseg("ingest", source, "--store", fresh, *arguments[:2], "--workers", 0).ok()
    assert files(store, "cases") == files(fresh, "cases")
    assert not list(store.glob("cases/.staging-*"))


def test_training_goes_on_after_kills(
    liverseg: Run, start: Start, store: Path, uninterrupted: Path, tiny: Path
) -> None:
    """Two kills at any step, one run of MLflow, and the weights of a training that nobody disturbed."""
    command = ["evaluate", "--config", tiny, "--store", store, *LONG]
    for least in (1, 80):
        process = start(*command)
        wait_for(functools.partial(reached, store, least), process)
        time.sleep(random.uniform(0, 0.2))  # anywhere between two checkpoints, or inside one
        kill(process)
        assert checkpoints(store)
    liverseg(*command).ok()
    facts = liverseg("train", *command[1:], "--json").ok().data
    first, second = facts["resumed_from"]
    assert 1 < first < second < 240
    assert {step % 16 for step in facts["resumed_from"]} == {0}
    assert files(store, "models", "evaluations") == files(uninterrupted, "models", "evaluations")
    assert runs(store) == [(facts["run_id"], "FINISHED")]


@pytest.mark.whole
def test_a_signal_saves_and_says_how_to_go_on(
    liverseg: Run, start: Start, store: Path, uninterrupted: Path, tiny: Path
) -> None:
    """The step at hand is finished and saved; MLflow says KILLED, then FINISHED, of one run."""
    command = ["train", "--config", tiny, "--store", store, *LONG]
    process = start(*command)
    wait_for(lambda: checkpoints(store), process)
    process.terminate()
    _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 143
    last = err.splitlines()[-1]
    assert last.startswith("LS100: training stopped at step ")
    assert last.endswith("Run the same command again to go on from there.")
    assert "Traceback" not in err
    stopped_at = int(last.split()[5])
    assert checkpoints(store)[-1].stem == f"step-{stopped_at:09d}"
    assert [status for _, status in runs(store)] == ["KILLED"]
    assert liverseg(*command, "--json").ok().data["resumed_from"] == [stopped_at]
    assert files(store, "models") == files(uninterrupted, "models")
    assert [status for _, status in runs(store)] == ["FINISHED"]


@pytest.mark.whole
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_whole_flow_stops_at_a_signal(
    start: Start, store: Path, phantom: Path, tiny: Path, number: signal.Signals, code: int
) -> None:
    """Prefect around the training changes neither exit code nor last line, and leaves no server behind."""
    command = ["run", phantom, "--config", tiny, "--store", store, *LONG]
    process = start(*command, PREFECT_API_URL="")
    wait_for(lambda: checkpoints(store), process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children, "the temporary Prefect API"
    process.send_signal(number)
    _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == code, err
    assert err.splitlines()[-1].startswith("LS100: training stopped at step ")
    assert "Traceback" not in err
    assert not psutil.wait_procs(children, timeout=15)[1]


@pytest.mark.whole
def test_the_flow_goes_on_after_a_kill(
    liverseg: Run, start: Start, store: Path, uninterrupted: Path, phantom: Path, tiny: Path
) -> None:
    """`liverseg run` killed in training: its server ends too, and the same command brings it to an end."""
    command = ["run", phantom, "--config", tiny, "--store", store, *LONG]
    process = start(*command, PREFECT_API_URL="")
    wait_for(lambda: checkpoints(store), process)
    kill(process)
    ended = liverseg(*command).ok()
    assert "ingest" in ended.err
    assert "7 stored before" in ended.err
    assert files(store, "models", "evaluations") == files(uninterrupted, "models", "evaluations")
    assert [status for _, status in runs(store)] == ["FINISHED"]


@pytest.mark.whole
def test_evaluation_goes_on_after_a_kill(
    liverseg: Run, start: Start, uninterrupted: Path, tiny: Path, tmp_path: Path
) -> None:
    """A case whose score is stored is not predicted again."""
    store = Path(shutil.copytree(uninterrupted, tmp_path / "store"))
    shutil.rmtree(store / "evaluations")
    # windows that overlap by nearly all of their size take their time
    slow = ["--set", "evaluate.overlap=0.9", "--set", "evaluate.batch_size=1"]
    command = ["evaluate", "--config", tiny, "--store", store, *LONG, *slow]
    process = start(*command)
    wait_for(lambda: [*store.glob("evaluations/.staging-*/cases/*.json")], process)
    kill(process)
    (staging,) = store.glob("evaluations/.staging-*/predictions")
    (record,) = staging.parent.glob("cases/*.json")
    prediction = staging / f"{record.stem}.nii.gz"
    before = prediction.stat().st_mtime_ns
    ended = liverseg(*command, "--json").ok().data
    after = Path(ended["path"]) / "predictions" / prediction.name
    assert after.stat().st_mtime_ns == before
    assert len(ended["cases"]) == 2
    assert {path.name for path in after.parent.iterdir()} == {
        f"{one['case']}.nii.gz" for one in ended["cases"]
    }


@pytest.mark.whole
def test_nothing_is_made_twice_at_the_same_time(liverseg: Run, start: Start, store: Path, tiny: Path) -> None:
    """While one process trains, another that wants the same model is refused, and told by whom."""
    command = ["train", "--config", tiny, "--store", store, *LONG]
    process = start(*command)
    wait_for(lambda: checkpoints(store), process)
    os.kill(process.pid, signal.SIGSTOP)
    refused = liverseg(*command)
    os.kill(process.pid, signal.SIGCONT)
    assert refused.code == 6
    assert refused.error.startswith("LS601: ")
    assert f"process {process.pid} " in refused.error
    process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
