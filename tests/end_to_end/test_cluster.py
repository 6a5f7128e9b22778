"""The whole cluster as `make up` brings it up: Postgres, S3, MLflow, Prefect, Dask, a worker for each pool.

One flow from a folder on S3 to a champion, retraining as data comes, and the flow again while parts of the
cluster are killed under it. The tests build on one another, in this order.
"""

import base64
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import yaml

from liverseg_core.phantom.dataset import PhantomSpec, write_phantom_tar

pytestmark = [pytest.mark.slow, pytest.mark.whole, pytest.mark.timeout(4000)]

ROOT = Path(__file__).parents[2]
NAME = "ingest-train-evaluate"
PORTS = ("POSTGRES_PORT", "S3_PORT", "PREFECT_PORT", "MLFLOW_PORT", "DASK_PORT", "DASHBOARD_PORT")
NEEDED = ("swift-proxy-server", "swift-object-server", "memcached", "openssl", "curl", "psql")
SETTINGS = {
    "ingest": {"spacing_mm": [2, 2, 2]},
    "split": {"validation": 2},
    "train": {
        "network": {"channels": [4, 8], "residual_units": 0},
        "patch_size": [32, 32, 32],
        "batch_size": 2,
        "steps": 300,
        "checkpoint_every": 20,
        "log_every": 5,
        "learning_rate": 0.02,
    },
    "retrain": {"steps": 20},
    "evaluate": {"pictures": 1},
    "report": {"worst": 1, "viewed": 1, "filmed": 0},
    "compute": {"device": "cpu"},
}
SAME = ("cases", "datasets", "models", "evaluations")
"""What the same data and settings must give again, whatever the model is called."""
INSTALLED = 'make() { command make -o .venv/.installed "$@"; }'
"""`.venv` is there: it runs this."""
ENDED = {"COMPLETED", "FAILED", "CANCELLED"}
"""One that crashed is taken up again."""
PATIENCE_S = 1800
"""Of a machine that has other things to do; a run takes seconds."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up, and how to talk to its parts."""

    folder: Path
    environment: dict[str, str]
    s3: Any
    """A client of its object store."""

    def run(self, *command: str) -> str:
        """What a command prints, typed in a shell that has read the cluster's `env`."""
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def prefect(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """What Prefect's API answers."""
        url, login = (self.environment[f"PREFECT_API_{name}"] for name in ("URL", "AUTH_STRING"))
        return _ask(url + path, login, body, method)

    def mlflow(self, path: str) -> Any:
        """What MLflow's REST API answers."""
        login = [self.environment[f"MLFLOW_TRACKING_{name}"] for name in ("USERNAME", "PASSWORD")]
        return _ask(f"{self.environment['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/{path}", ":".join(login))

    def control(self, *words: str) -> str:
        """Tell the supervisor something."""
        server = f"unix://{self.folder}/supervisor.sock"
        command = ["supervisorctl", "-s", server, *words]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        ).stdout

    def tree(self, service: str) -> list[psutil.Process]:
        """A service's process and those below it."""
        main = psutil.Process(int(self.control("pid", service)))
        return [main, *main.children(recursive=True)]

    def keys(self, prefix: str) -> dict[str, datetime]:
        """When each object below a prefix was written."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket="liverseg", Prefix=prefix)
        return {one["Key"]: one["LastModified"] for page in pages for one in page.get("Contents", ())}

    def digests(self, store: str) -> dict[str, Any]:
        """What the manifests of a store list, by stage and key."""
        found = {}
        for key in self.keys(f"{store}/"):
            stage, _, rest = key.removeprefix(f"{store}/").partition("/")
            if rest.endswith("/manifest.json") and stage in SAME:
                content = json.load(self.s3.get_object(Bucket="liverseg", Key=key)["Body"])
                found[f"{stage}/{rest.partition('/')[0]}"] = content["files"]
        return found

    def versions(self) -> dict[int, dict[str, Any]]:
        """Registered versions by number, with their tags and aliases."""
        found = self.mlflow("model-versions/search?filter=name%3D%27liverseg%27").get("model_versions", [])
        numbers = [int(version["version"]) for version in found]
        whole = [self.mlflow(f"model-versions/get?name=liverseg&version={number}") for number in numbers]
        return dict(zip(numbers, (one["model_version"] for one in whole), strict=True))

    def champion(self) -> int:
        """The champion's number, by MLflow's REST API."""
        return int(
            self.mlflow("registered-models/alias?name=liverseg&alias=champion")["model_version"]["version"]
        )

    def start(self, deployment: str, **parameters: Any) -> str:
        """Start a deployment's run and return its id."""
        found = self.prefect(f"/deployments/name/{deployment}/{deployment}")
        body = {"parameters": found["parameters"] | parameters, "state": {"type": "SCHEDULED"}}
        return str(self.prefect(f"/deployments/{found['id']}/create_flow_run", body)["id"])

    def ended(self, run: str) -> dict[str, Any]:
        """A flow run when it has ended."""
        return self.await_run(run, lambda found: found["state_type"] in ENDED)

    def await_run(self, run: str, met: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """A flow run when a condition is met."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found: dict[str, Any] = self.prefect(f"/flow_runs/{run}")
            if met(found):
                return found
            assert time.monotonic() < deadline, (found["name"], found["state_name"], self.logs())
            time.sleep(0.5)

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """Flow runs of a deployment but those that wait for their hour."""
        found = self.prefect("/flow_runs/filter", {"deployments": {"name": {"any_": [deployment]}}})
        return [run for run in found if run["state_name"] != "Scheduled"]

    def logs(self) -> str:
        """The ends of the workers' logs."""
        return "\n".join(
            path.read_text(errors="replace")[-3000:] for path in (self.folder / "log").glob("*worker*.log")
        )


def _ask(url: str, login: str, body: Any = None, method: str | None = None) -> Any:
    headers = {
        "Content-Type": "application/json",
        "Authorization": "Basic " + base64.b64encode(login.encode()).decode(),
    }
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or b"null")


def typed(folder: Path, environment: dict[str, str], *lines: str) -> str:
    """What these lines print, typed one after the other in a shell; the first that fails ends it."""
    done = subprocess.run(
        ["bash", "-ec", "\n".join([INSTALLED, *lines])],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, (lines, done.stdout, done.stderr)
    return done.stdout


def page() -> list[str]:
    """What docs/one-machine.md has people type, from `make up` on; here for a small phantom."""
    blocks = re.findall(r"(?ms)^```sh\n(.*?)^```", (ROOT / "docs" / "one-machine.md").read_text())
    lines = [line for block in blocks for line in block.splitlines() if not line.startswith("apt-get ")]
    assert lines[0].startswith("make up LIVERSEG_SOURCE=")
    return lines


@pytest.fixture(scope="module")
def cluster(
    service_environment: dict[str, str],
    free_port: Callable[[], int],
    free_ports: Callable[[int], int],
    s3_client: Callable[[str, str, str], Any],
) -> Iterator[Cluster]:
    """`make up` in a checkout; afterwards `make down`, and none of its processes is left."""
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or not all(map(shutil.which, NEEDED)):
        pytest.skip("needs PostgreSQL and OpenStack Swift")
    folder = Path(tempfile.mkdtemp(prefix="liverseg-"))  # pytest's own are closed to the user postgres
    folder.chmod(0o755)
    for name in ("Makefile", "infra", "deployments", "pyproject.toml", "constraints-cpu.txt", ".venv"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))
    chosen = {name: str(free_port()) for name in PORTS} | {"SWIFT_PORT": str(free_ports(4))}
    quick = {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2"}
    environment = service_environment | chosen | quick | {"DASK_WORKER_MEMORY": "1GB"}
    first = f"make up LIVERSEG_SOURCE=s3://liverseg/incoming/ LIVERSEG_CONFIG={folder}/settings.yaml"
    try:
        typed(folder, environment, first)
        told = typed(folder, service_environment, ". cluster/env", "env -0")
        pairs = (pair.partition("=") for pair in told.split("\0") if pair)
        read = {name: value for name, _, value in pairs}
        key = (folder / "cluster" / "secrets" / "s3-key").read_text()
        up = Cluster(folder / "cluster", read, s3_client(read["AWS_ENDPOINT_URL"], "liverseg:store", key))
        yield up
        names = [line.split()[0] for line in up.control("status").splitlines()]
        processes = [process for name in names for process in up.tree(name)]
        typed(folder, environment, "make down")
        assert not [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    finally:
        typed(folder, environment, "make down")
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked phantom of eight cases."""
    folder = tmp_path_factory.mktemp("scans")
    write_phantom_tar(folder / "p.tar", PhantomSpec(cases=8, unlabelled=0, size=(64, 64, 40)))
    with tarfile.open(folder / "p.tar") as tar:
        tar.extractall(folder, filter="data")
    return next(folder.glob("*/dataset.json")).parent


def bring(cluster: Cluster, scans: Path, count: int) -> None:
    """Upload cases that are not there yet, and last the dataset.json that names them."""
    there = cluster.keys("incoming/")
    listing = json.loads((scans / "dataset.json").read_text())
    listing["training"] = listing["training"][:count]
    for pair in listing["training"]:
        for name in pair.values():
            key = f"incoming/{name.removeprefix('./')}"
            if key not in there:
                cluster.s3.put_object(Bucket="liverseg", Key=key, Body=(scans / name).read_bytes())
    content = json.dumps(listing | {"numTraining": count}).encode()
    cluster.s3.put_object(Bucket="liverseg", Key="incoming/dataset.json", Body=content)


def test_from_scans_on_s3_to_a_champion(cluster: Cluster, scans: Path) -> None:
    bring(cluster, scans, 6)
    printed = cluster.run("prefect", "deployment", "run", NAME)
    run = cluster.ended(printed.split("UUID:")[1].split()[0])
    assert (run["state_type"], run["work_pool_name"]) == ("COMPLETED", "cpu"), cluster.logs()
    assert cluster.champion() == 1
    (version,) = cluster.versions().values()
    assert version["tags"], "which data, code, recipe, and how good"
    made = cluster.digests("store")
    assert sorted(key.partition("/")[0] for key in made) == ["cases"] * 6 + [
        "datasets",
        "evaluations",
        "models",
    ]
    assert any("model.safetensors" in key for key in cluster.keys("mlflow/")), "artifacts are on S3, too"
    (training,) = cluster.runs("train")
    assert (training["state_type"], training["work_pool_name"]) == ("COMPLETED", "gpu")
    shown = cluster.prefect("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
    assert {artifact["type"] for artifact in shown} >= {"progress", "table", "markdown"}


def kill_a_dask_worker(cluster: Cluster, store: str) -> None:
    """In the middle of the ingest."""
    deadline = time.monotonic() + PATIENCE_S
    while not any(key.endswith("/manifest.json") for key in cluster.keys(f"{store}/cases/")):
        assert time.monotonic() < deadline
    for process in cluster.tree("dask-worker:0"):
        process.kill()


def kill_mlflow(cluster: Cluster, store: str) -> None:
    """While the training runs, for ten seconds and until it has started again."""
    await_training(cluster, store)
    for process in cluster.tree("mlflow"):
        process.kill()
    cluster.control("stop", "mlflow")
    time.sleep(10)
    cluster.control("start", "mlflow")


def kill_the_prefect_worker(cluster: Cluster, store: str) -> None:
    """And the flow that it runs, while it waits for the training."""
    await_training(cluster, store)
    for process in cluster.tree("cpu-worker"):
        process.kill()


def await_training(cluster: Cluster, store: str) -> None:
    """Until a checkpoint of a training has been written."""
    deadline = time.monotonic() + PATIENCE_S
    while not any("/.staging-" in key for key in cluster.keys(f"{store}/models/")):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("kill", [kill_a_dask_worker, kill_mlflow, kill_the_prefect_worker])
def test_what_is_killed_comes_back(
    cluster: Cluster,
    kill: Callable[[Cluster, str], None],
    record_property: Callable[[str, object], None],
) -> None:
    """The same run ends Completed, in a store of its own, with the digests of the first, undisturbed run."""
    store = kill.__name__.replace("_", "-")
    told = {"store": f"s3://liverseg/{store}", "overrides": [f"register.model={store}"]}
    run = cluster.start(NAME, **told)
    kill(cluster, store)
    assert cluster.ended(run)["state_type"] == "COMPLETED", cluster.logs()
    assert cluster.digests(store) == cluster.digests("store")
    record_property("run_count", cluster.prefect(f"/flow_runs/{run}")["run_count"])


def test_new_cases_are_retrained_on(cluster: Cluster, scans: Path) -> None:
    before = cluster.keys("store/cases/")
    bring(cluster, scans, 8)
    cluster.run("prefect", "event", "emit", "liverseg.data.arrived", "--resource-id", "liverseg.source")
    deadline = time.monotonic() + PATIENCE_S
    while not (runs := cluster.runs("retrain")):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert cluster.ended(runs[0]["id"])["state_type"] == "COMPLETED", cluster.logs()
    after = cluster.keys("store/cases/")
    new = {key.split("/")[2] for key in after} - {key.split("/")[2] for key in before}
    assert len(new - {"index.jsonl.gz", "latest.json"}) == 2, "the new cases"
    kept = {key for key in before if key.count("/") > 2}
    assert all(after[key] == before[key] for key in kept), "and no other"
    assert sorted(cluster.versions()) == [1, 2]
    assert any("against version 1" in tag["value"] for tag in cluster.versions()[2]["tags"])


def test_a_schedule_with_nothing_new(
    cluster: Cluster, record_property: Callable[[str, object], None]
) -> None:
    deployment = cluster.prefect("/deployments/name/retrain/retrain")
    before, trainings = cluster.versions().keys(), len(cluster.runs("train"))
    known = {run["id"] for run in cluster.runs("retrain")}
    schedules = f"/deployments/{deployment['id']}/schedules"
    (made,) = cluster.prefect(schedules, [{"schedule": {"interval": 20}, "active": True}])
    deadline = time.monotonic() + PATIENCE_S
    while not (fresh := [run for run in cluster.runs("retrain") if run["id"] not in known]):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    cluster.prefect(f"{schedules}/{made['id']}", method="DELETE")
    run = cluster.ended(fresh[0]["id"])
    assert run["auto_scheduled"]
    assert run["state_type"] == "COMPLETED"
    record_property("nothing_new_s", run["total_run_time"])
    assert cluster.versions().keys() == before
    assert len(cluster.runs("train")) == trainings


def test_two_retrainings_at_once_take_turns(cluster: Cluster) -> None:
    first, second = (cluster.start("retrain") for _ in range(2))
    waiting: set[str] = set()

    def both_ended(_: Any) -> bool:
        found = [cluster.prefect(f"/flow_runs/{run}") for run in (first, second)]
        running = [run["id"] for run in found if run["state_type"] == "RUNNING"]
        assert len(running) < 2, "never two"
        waiting.update(run["id"] for run in found if run["state_name"] == "AwaitingConcurrencySlot")
        return all(run["state_type"] in ENDED for run in found)

    cluster.await_run(first, both_ended)
    assert len(waiting) == 1, "one of them was queued, by that name"
    assert all(cluster.prefect(f"/flow_runs/{run}")["state_type"] == "COMPLETED" for run in (first, second))


def test_a_champion_comes_back_as_it_was(cluster: Cluster) -> None:
    cluster.run("liverseg", "models", "promote", "models:/liverseg/2", "--force")
    assert cluster.champion() == 2
    told = json.loads(cluster.run("liverseg", "models", "rollback", "--json"))
    assert cluster.champion() == 1
    assert told["differing_voxels"] == 0, "it predicts what was archived with it"


def test_what_the_page_has_people_type(cluster: Cluster) -> None:
    """Line by line; after `make down`, a copy, and `make up`, everything is where it was."""
    lines = page()[1:]
    down = lines.index("make down")
    typed(cluster.folder.parent, cluster.environment, *lines[:down])
    for deployment in (NAME, "retrain"):
        for run in cluster.runs(deployment):
            assert cluster.ended(run["id"])["state_type"] == "COMPLETED"
    made, champion, versions = cluster.digests("store"), cluster.champion(), cluster.versions().keys()
    typed(cluster.folder.parent, cluster.environment, *lines[down:])
    assert (cluster.folder.parent / "cluster.backup" / "env").exists()
    assert (cluster.digests("store"), cluster.champion()) == (made, champion)
    assert cluster.versions().keys() == versions
    assert cluster.ended(cluster.start("retrain"))["state_type"] == "COMPLETED"


def test_what_the_page_installs_is_what_runs_the_tests() -> None:
    installed = (ROOT / ".ci" / "run").read_text().split()
    lines = (ROOT / "docs" / "one-machine.md").read_text().splitlines()
    wanted = [word for line in lines if line.startswith("apt-get install") for word in line.split()[2:]]
    here = {"git", "make", "python3", "python3-venv"}
    assert {word for word in wanted if not word.startswith("--")} - here <= set(installed)
