"""Runs, metrics and the registry, against a real MLflow on SQLite."""

import multiprocessing
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from liverseg_core.config import RegisterConfig, Settings
from liverseg_core.errors import LiversegError
from tasks.registry.metric_log import MetricLog
from tasks.registry.publish import Registration, register
from tasks.registry.tracking import (
    OWNER,
    Tracking,
    connect,
    connect_patiently,
    find_run,
    finish_run,
    open_run,
)
from tasks.registry.versions import DICE, fetch_model, list_versions

PARAMS = {"train": {"learning_rate": 0.001, "network": {"name": "unet"}}, "datalist": "x" * 7000}


def history(run_id: str, name: str) -> list[tuple[int, float]]:
    found = MlflowClient().get_metric_history(run_id, name)
    return sorted((metric.step, metric.value) for metric in found)


def status(run_id: str) -> str:
    return str(MlflowClient().get_run(run_id).info.status)


# Runs


def test_a_store_has_its_tracking_beside_it_and_leaves_the_environment_alone(store: Tracking) -> None:
    assert store.folder is not None
    assert (store.folder / "mlflow.db").exists()
    experiment = MlflowClient().get_experiment(store.experiment)
    assert experiment.artifact_location == (store.folder / "mlflow-artifacts").as_uri()
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_a_key_has_one_run(store: Tracking) -> None:
    run_id = open_run(store, "key-a", "phantom", PARAMS, {"data": "d1"})
    finish_run(run_id, "FAILED")
    again = open_run(store, "key-a", "phantom", {**PARAMS, "compute": {"workers": 2}}, {})
    assert again == run_id == find_run(store, "key-a")
    assert open_run(store, "key-b", "phantom", {}, {}) != run_id
    assert find_run(store, "key-c") is None
    run = MlflowClient().get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.data.params["train.learning_rate"] == "0.001"
    assert run.data.params["train.network.name"] == "unet"
    assert len(run.data.params["datalist"]) == 6000
    assert run.data.params["compute.workers"] == "2"
    assert run.data.tags["data"] == "d1"


def test_a_dead_owners_run_is_swept_and_a_living_ones_is_not(store: Tracking) -> None:
    client = MlflowClient()
    dead, reused, foreign = (open_run(store, name, name, {}, {}) for name in ("dead", "reused", "foreign"))
    child = multiprocessing.get_context("spawn").Process(target=int)
    child.start()
    child.join()
    host = socket.gethostname()
    client.set_tag(dead, OWNER, f"{host} {child.pid} {time.time():.0f}")
    client.set_tag(reused, OWNER, f"{host} {os.getpid()} {time.time() - 9999:.0f}")
    client.set_tag(foreign, OWNER, f"elsewhere {child.pid} {time.time():.0f}")
    alive = open_run(store, "alive", "alive", {}, {})
    open_run(store, "another", "another", {}, {})
    assert [status(one) for one in (dead, reused, foreign, alive)] == [
        "KILLED",
        "KILLED",
        "RUNNING",
        "RUNNING",
    ]


# Metrics


def test_logging_again_after_a_kill_stores_each_value_once(store: Tracking) -> None:
    run_id = open_run(store, "metrics", "metrics", {}, {})
    for steps in (range(30), range(20, 50)):
        with MetricLog(run_id) as log:
            for step in steps:
                log(step, {"train/loss": 1 / (step + 1)})
    assert history(run_id, "train/loss") == [(step, 1 / (step + 1)) for step in range(50)]


def test_metrics_are_sent_while_training_runs(store: Tracking) -> None:
    now = [0.0]
    log = MetricLog(open_run(store, "live", "live", {}, {}), interval_s=5, clock=lambda: now[0])
    log(0, {"train/loss": 1.0})
    now[0] = 6
    log(1, {"train/loss": 0.5})
    run_id = find_run(store, "live")
    assert run_id is not None
    assert len(history(run_id, "train/loss")) == 2


def test_a_loops_own_error_is_the_one_that_shows(store: Tracking) -> None:
    run_id = open_run(store, "broken", "broken", {}, {})

    def train() -> None:
        with MetricLog(run_id) as log:
            log(0, {"train/loss": 1.0})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert history(run_id, "train/loss") == [(0, 1.0)]


def test_no_server_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(
        LiversegError, match=r"LS401: MLflow at http://127\.0\.0\.1:\d+ failed: no answer"
    ) as caught:
        connect(f"http://name:secret@127.0.0.1:{port}", tmp_path, "liverseg")
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with pytest.raises(LiversegError, match="LS401"):
        connect(None, tmp_path, "liverseg")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / "mlflow.db").write_bytes(b"junk" * 1000)
    with pytest.raises(LiversegError, match=r"LS401.*not a database"):
        connect(None, tmp_path, "liverseg")


def test_a_silent_server_is_waited_for_and_a_broken_store_is_not(
    tmp_path: Path, free_port: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    def settings(**register: object) -> Settings:
        return Settings.model_validate({"store": str(tmp_path), "register": {"patience_s": 3} | register})

    begun = time.monotonic()
    with pytest.raises(LiversegError, match=r"LS401.*no answer"):
        connect_patiently(settings(tracking_uri=f"http://127.0.0.1:{free_port()}"))
    assert time.monotonic() - begun > 3
    said = [record.getMessage() for record in caplog.records if record.name == "tasks.registry.tracking"]
    assert len(said) == 1
    assert said[0].endswith("failed: no answer; trying again for 3 s")
    (tmp_path / "mlflow.db").write_bytes(b"junk" * 1000)
    with pytest.raises(LiversegError, match=r"LS401.*not a database"):
        connect_patiently(settings(patience_s=1000))


# The registry


@pytest.fixture
def request_a(store: Tracking, registration: Callable[..., Registration]) -> Registration:
    return registration(store)


def test_registering_publishes_all_once(
    store: Tracking, request_a: Registration, capfd: pytest.CaptureFixture[str]
) -> None:
    version = register(store, request_a)
    assert (version.version, version.aliases) == (1, ("candidate", "champion"))
    assert version.reason == "champion: there was none"
    assert version.tags[DICE["tumour"]] == "0.900000"
    assert version.tags["liverseg.recipe"] == "phantom"
    again = register(store, request_a)
    assert again == version
    assert list_versions(store, request_a.config.model) == [version]
    assert "".join(capfd.readouterr()) == "", "MLflow keeps quiet"

    client = MlflowClient()
    logged = {item.path for item in client.list_artifacts(request_a.run_id, "evaluation")}
    assert logged == {"evaluation/metrics.json", "evaluation/pictures"}
    run = client.get_run(request_a.run_id)
    assert run.data.metrics["evaluate/tumour/dice_pooled"] == pytest.approx(0.9)
    assert run.inputs.dataset_inputs[0].dataset.digest == request_a.data_key
    (output,) = run.outputs.model_outputs
    stored = client.get_logged_model(output.model_id)
    assert {metric.key: metric.value for metric in stored.metrics}[
        "evaluate/liver/dice_nan"
    ] == pytest.approx(0.9)


def test_a_registration_that_died_is_done_again_and_one_version_comes_of_it(
    store: Tracking, request_a: Registration, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_model_version", die)
        with pytest.raises(KeyboardInterrupt):
            register(store, request_a)
    assert list_versions(store, request_a.config.model) == []
    assert register(store, request_a).version == 1


def test_two_at_once_make_one_version(store: Tracking, request_a: Registration) -> None:
    with ThreadPoolExecutor(2) as pool:
        versions = list(pool.map(register, [store] * 2, [request_a] * 2))
    assert [version.version for version in versions] == [1, 1]
    assert len(list_versions(store, request_a.config.model)) == 1


def test_fetching_by_every_name_gives_the_registered_bytes(
    store: Tracking, request_a: Registration, tmp_path: Path
) -> None:
    register(store, request_a)
    name = request_a.config.model
    for reference in (f"models:/{name}@champion", f"models:/{name}/1", f"runs:/{request_a.run_id}"):
        folder = fetch_model(reference, tmp_path / "fetched")
        assert sorted(path.name for path in folder.iterdir()) == [
            "model.json",
            "model.safetensors",
            "prediction.npz",
        ]
        assert (folder / "model.json").read_bytes() == (request_a.model / "model.json").read_bytes()
    for reference in (f"models:/{name}@nobody", f"models:/{name}/99", "runs:/00", "liverseg"):
        with pytest.raises(LiversegError, match="LS291"):
            fetch_model(reference, tmp_path / "fetched")


def test_an_altered_model_is_refused(store: Tracking, request_a: Registration, tmp_path: Path) -> None:
    register(store, request_a)
    assert store.folder is not None
    run = MlflowClient().get_run(request_a.run_id)
    model_id = run.outputs.model_outputs[0].model_id
    (weights,) = store.folder.glob(f"mlflow-artifacts/**/{model_id}/**/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(LiversegError, match="LS503"):
        fetch_model(f"models:/{request_a.config.model}@champion", tmp_path / "fetched")
    assert list((tmp_path / "fetched").iterdir()) == []


def test_a_model_that_does_not_predict_is_not_registered(
    store: Tracking, request_a: Registration, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"\0" * 64)
    (broken / "model.json").write_bytes((request_a.model / "model.json").read_bytes())
    with pytest.raises(LiversegError, match=r"LS523.*LS522"):
        register(store, replace(request_a, model=broken))
    assert list_versions(store, request_a.config.model) == []


def test_the_pyfunc_takes_a_path_or_an_array_and_unpickles_nothing(
    store: Tracking, request_a: Registration, tmp_path: Path
) -> None:
    import mlflow
    import nibabel as nib
    import pandas as pd  # type: ignore[import-untyped]

    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    register(store, request_a)
    loaded = mlflow.pyfunc.load_model(f"models:/{request_a.config.model}@champion")
    image = np.random.default_rng(0).integers(-200, 300, (20, 18, 9)).astype(np.int16)
    affine = np.diag([-1.0, 1.0, 2.5, 1.0])
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(image, affine), path)
    by_path = loaded.predict({"path": str(path)})
    assert (by_path.shape, by_path.dtype) == (image.shape, np.uint8)
    assert set(np.unique(by_path)) <= {0, 1, 2}
    for same in (
        {"image": image, "affine": affine},
        {"image": image.tolist(), "affine": affine.tolist()},
        pd.DataFrame([{"path": str(path)}]),
    ):
        assert (loaded.predict(same) == by_path).all()
    whole = np.diag([-1, 1, 2, 1])
    exact = loaded.predict({"image": image, "affine": whole.astype(float).tolist()})
    for affine in (whole.tolist(), [[-1.0, 0, 0, 0], *whole[1:].tolist()], whole):
        assert (loaded.predict({"image": image, "affine": affine}) == exact).all()
    told = loaded.predict({"path": str(path)}, {"labels": "none", "volumes": True})
    assert told.keys() == {"flags", "remarks", "volumes"}
    assert "odd-hu-offset" in told["flags"], "there is no air"
    with pytest.raises(mlflow.exceptions.MlflowException, match="LS292"):
        loaded.predict({"image": image})
    with pytest.raises(Exception, match="LS292: an affine that is not 4 × 4"):
        loaded.predict({"image": image, "affine": [[1, 2], [3, 4]]})
    with pytest.raises(Exception, match=r"LS292: 1 row with path: int\."):
        loaded.predict({"path": 3})


# A server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers=1",
    ]
    places = [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/s.db",
        "--artifacts-destination",
        str(tmp_path / "a"),
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen([*command, *places], env=environment, cwd=tmp_path, start_new_session=True)
    uri = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.5)
        yield uri, process
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
def test_a_server_and_its_absence(
    server: tuple[str, "subprocess.Popen[bytes]"],
    request_a: Registration,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # seven take two minutes
    uri, process = server
    remote = connect(uri, tmp_path, "liverseg")
    assert remote.folder is None
    run_id = open_run(remote, "k", "phantom", PARAMS, {})
    version = register(remote, replace(request_a, run_id=run_id, config=RegisterConfig()))
    assert version.aliases == ("candidate", "champion")
    fetched = fetch_model("models:/liverseg@champion", tmp_path / "fetched")
    assert (fetched / "model.json").read_bytes() == (request_a.model / "model.json").read_bytes()

    def train() -> None:
        with MetricLog(run_id, interval_s=0) as log:
            log(0, {"train/loss": 1.0})
            process.terminate()
            process.wait(30)
            for step in range(1, 5):
                log(step, {"train/loss": 1.0})

    with pytest.raises(LiversegError, match="LS401"):
        train()
    assert [record.name for record in caplog.records].count("tasks.registry.metric_log") == 1, "warned once"
