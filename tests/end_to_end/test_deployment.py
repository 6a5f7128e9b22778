"""The deployment on real servers: as typed at the shell, and as the scheduler sees it."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import yaml

from liverseg_core.phantom.dataset import PhantomSpec, write_phantom_tar

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NAME = "ingest-train-evaluate"
TINY = {
    "ingest": {"spacing_mm": None},
    "split": {"validation": 1},
    "train": {
        "network": {"channels": [4, 8, 16]},
        "patch_size": [32, 32, 32],
        "steps": 4,
        "checkpoint_every": 2,
        "log_every": 1,
    },
    "evaluate": {"pictures": 1},
    "compute": {"workers": 1, "device": "cpu"},
}


def prefect(command: str, environment: dict[str, str], timeout: float = 1200) -> str:
    """Type a Prefect command at the root of the repository and return what it prints."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("prefect")), *command.split()],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    """The JSON that a service answers, to a GET or, with a body, to a POST."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    for _ in range(60):
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != 503:  # a server whose database is busy asks to come again
                raise
            time.sleep(1)
    raise AssertionError(f"{url} stays busy")


@pytest.fixture(scope="module")
def deployed(
    tmp_path_factory: pytest.TempPathFactory,
    prefect_environment: dict[str, str],
    prefect_worker: str,
    mlflow_server: str,
) -> dict[str, str]:
    """The environment in which the flow was deployed, twice, for a tiny phantom."""
    folder = tmp_path_factory.mktemp("deployed")
    write_phantom_tar(folder / "phantom.tar", PhantomSpec(cases=3, unlabelled=0, size=(48, 48, 32)))
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump(TINY | {"register": {"tracking_uri": mlflow_server}}))
    environment = prefect_environment | {
        "LIVERSEG_SOURCE": str(folder / "phantom.tar"),
        "LIVERSEG_STORE": str(folder / "store"),
        "LIVERSEG_CONFIG": str(config),
    }
    for _ in range(2):
        prefect("--no-prompt deploy --all --prefect-file deployments/prefect.yaml", environment)
    return environment


def test_deploying_again_changes_nothing(deployed: dict[str, str]) -> None:
    found = ask(
        f"{deployed['PREFECT_API_URL']}/deployments/filter", {"deployments": {"name": {"any_": [NAME]}}}
    )
    assert len(found) == 1
    deployment = found[0]
    assert deployment["entrypoint"] == "flows.pipeline.ingest_train_evaluate"
    assert deployment["parameters"] == {
        "source": deployed["LIVERSEG_SOURCE"],
        "store": deployed["LIVERSEG_STORE"],
        "config": deployed["LIVERSEG_CONFIG"],
    }
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert not deployment["pull_steps"]


def test_typed_at_the_shell(deployed: dict[str, str], mlflow_server: str) -> None:
    printed = prefect(f"deployment run {NAME} --watch", deployed)
    run_id = printed.split("UUID:")[1].split()[0]
    api = deployed["PREFECT_API_URL"]
    run = ask(f"{api}/flow_runs/{run_id}")
    assert (run["state_type"], run["work_pool_name"]) == ("COMPLETED", "liverseg")
    found = ask(f"{mlflow_server}/api/2.0/mlflow/model-versions/search?filter=name%3D%27liverseg%27")
    assert [(version["version"], version["status"]) for version in found["model_versions"]] == [
        ("1", "READY")
    ]
    model = ask(f"{mlflow_server}/api/2.0/mlflow/registered-models/get?name=liverseg")["registered_model"]
    assert {alias["alias"]: alias["version"] for alias in model["aliases"]}["champion"] == "1"
    mlflow_run = found["model_versions"][0]["run_id"]
    report = ask(f"{mlflow_server}/api/2.0/mlflow/artifacts/list?run_id={mlflow_run}&path=report")
    assert {file["path"] for file in report["files"]} >= {"report/report.html", "report/model_card.md"}
    shown = ask(f"{api}/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run_id]}}})
    artifacts = {artifact["key"]: artifact["data"] for artifact in shown}
    bars = {key for key in artifacts if key.endswith("-progress")}
    assert bars >= {f"liverseg-{stage}-progress" for stage in ("ingest", "train", "evaluate")}
    assert all(float(artifacts[bar]) == 100 for bar in bars)
    assert artifacts.keys() - bars == {"liverseg-dice", "liverseg-model", "liverseg-report"}
    place = f"/runs/{mlflow_run}/artifacts/report/report.html)"
    assert artifacts["liverseg-report"].startswith(f"[Report of liverseg version 1]({mlflow_server}/#/")
    assert artifacts["liverseg-report"].endswith(place)
    page = next(Path(deployed["LIVERSEG_STORE"]).glob("reports/*/report.html")).read_text()
    assert f"/flow-runs/flow-run/{run_id}" in page
    assert f"{mlflow_server}/#/models/liverseg/versions/1" in page


def test_typed_again_everything_is_cached(deployed: dict[str, str], mlflow_server: str) -> None:
    printed = prefect(f"deployment run {NAME} --watch", deployed)
    run_id = printed.split("UUID:")[1].split()[0]
    wanted = {"task_runs": {"flow_run_id": {"any_": [run_id]}}}
    names: list[str] = []
    for _ in range(50):  # task states arrive a little after the flow's
        names = [run["state_name"] for run in ask(f"{deployed['PREFECT_API_URL']}/task_runs/filter", wanted)]
        if names == ["Cached"] * 6:
            break
        time.sleep(0.2)
    assert names == ["Cached"] * 6
    found = ask(f"{mlflow_server}/api/2.0/mlflow/model-versions/search?filter=name%3D%27liverseg%27")
    assert len(found["model_versions"]) == 1


@pytest.mark.parametrize("name", ["nothing-of-that-name", "twice"])
def test_a_bare_name_must_mean_one_deployment(name: str, prefect_environment: dict[str, str]) -> None:
    api = prefect_environment["PREFECT_API_URL"]
    if name == "twice":
        for flow in ("first", "second"):
            flow_id = ask(f"{api}/flows/", {"name": flow})["id"]
            ask(f"{api}/deployments/", {"name": name, "flow_id": flow_id})
    with pytest.raises(AssertionError, match=f"Invalid deployment name format: {name}"):
        prefect(f"deployment run {name}", prefect_environment)


def test_an_active_schedule_yields_a_run(prefect_server: str) -> None:
    """With SQLAlchemy 2.1 the server runs everything but its scheduler, and says nothing."""
    flow_id = ask(f"{prefect_server}/flows/", {"name": "by-the-clock"})["id"]
    schedules = [{"schedule": {"cron": "*/5 * * * *"}, "active": True}]
    deployment = {"name": "by-the-clock", "flow_id": flow_id, "schedules": schedules}
    deployment_id = ask(f"{prefect_server}/deployments/", deployment)["id"]
    wanted = {"flow_runs": {"deployment_id": {"any_": [deployment_id]}}}
    for _ in range(60):
        runs = ask(f"{prefect_server}/flow_runs/filter", wanted)
        if runs:
            break
        time.sleep(0.5)
    assert runs
    assert {run["state_type"] for run in runs} == {"SCHEDULED"}


def test_an_event_asks_for_retraining(deployed: dict[str, str], mlflow_server: str) -> None:
    """Nothing is new after the run before: the flow that the event starts does nothing."""
    api = deployed["PREFECT_API_URL"]
    named = {"deployments": {"name": {"any_": ["retrain"]}}}
    (deployment,) = ask(f"{api}/deployments/filter", named)
    assert [each["schedule"]["cron"] for each in deployment["schedules"]] == ["0 3 * * *"]
    assert deployment["global_concurrency_limit"]["limit"] == 1
    prefect("event emit liverseg.data.arrived --resource-id liverseg.source", deployed)
    deadline = time.monotonic() + 600
    states: set[str] = set()
    while not states & {"COMPLETED", "FAILED", "CRASHED"} and time.monotonic() < deadline:
        time.sleep(1)
        runs = ask(f"{api}/flow_runs/filter", named)
        states = {run["state_type"] for run in runs if run["state_type"] != "SCHEDULED"}
    assert states == {"COMPLETED"}
    found = ask(f"{mlflow_server}/api/2.0/mlflow/model-versions/search?filter=name%3D%27liverseg%27")
    assert [version["version"] for version in found["model_versions"]] == ["1"]


@pytest.mark.whole
def test_another_deployment_trains(
    deployed: dict[str, str],
    mlflow_server: str,
    working_pool: Callable[[str], AbstractContextManager[None]],
) -> None:
    """As on a cluster where one pool has GPUs: training is handed over, and the model found in the store."""
    api = deployed["PREFECT_API_URL"]
    overrides = '["train.learning_rate=0.002","compute.train_deployment=train"]'
    with working_pool("gpu"):
        prefect("--no-prompt deploy -n train --pool gpu --prefect-file deployments/prefect.yaml", deployed)
        prefect(f"deployment run {NAME} -p overrides={overrides} --watch", deployed)
    (run,) = ask(f"{api}/flow_runs/filter", {"deployments": {"name": {"any_": ["train"]}}})
    assert (run["state_type"], run["work_pool_name"]) == ("COMPLETED", "gpu")
    assert run["parameters"]["settings"]["train"]["learning_rate"] == 0.002
    found = ask(f"{mlflow_server}/api/2.0/mlflow/model-versions/search?filter=name%3D%27liverseg%27")
    assert sorted(version["version"] for version in found["model_versions"]) == ["1", "2"]
