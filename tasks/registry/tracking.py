"""MLflow runs: where they are kept, and one per training key.

The modules that import mlflow, named in an import contract, are themselves imported only where a stage has
something to record: a cached rerun never pays the second that the import takes.
"""

import contextlib
import errno
import logging
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil  # type: ignore[import-untyped]
from sqlalchemy.exc import SQLAlchemyError

from liverseg_core.config import Settings
from liverseg_core.durable import cannot_write, writable
from liverseg_core.environment import environment
from liverseg_core.errors import LiversegError
from tasks.registry.database import make_database
from tasks.registry.database_errors import driver_error, unwritable
from tasks.registry.files import ARTIFACTS, DATABASE, sqlite_path, sqlite_uri
from tasks.registry.place import require_tracking

# MLflow reads these at import and at every request. Said by the user, they stay as they are. Seven retries,
# each after twice the wait, outlast a server that is away for two minutes.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "7",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
}.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient, set_tracking_uri  # noqa: E402
from mlflow.entities import Param, Run, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.telemetry import set_telemetry_client  # noqa: E402

from tasks.registry.moved import find_moved  # noqa: E402

__all__ = [
    "Tracking",
    "connect",
    "connect_patiently",
    "find_run",
    "finish_run",
    "log_report",
    "open_run",
]

# It may have been imported before the lines above had said how, as by MLflow's own server of models.
set_telemetry_client()
logging.getLogger("mlflow").setLevel(logging.ERROR)
# It prints a traceback of each error that it raises as well.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

LOG = logging.getLogger(__name__)
KEY, OWNER = "liverseg.model_key", "liverseg.owner"
IMPATIENT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
RETRY_S = 2.0
SERVERS_PATH = re.compile(r"(?<![\w/:.])/(?:[^\s/'\"]+/)+([^\s/'\"]*)")
PARAM_LENGTH, BATCH = 6000, 100
"""MLflow's limits: characters of a parameter, parameters of a request."""


@dataclass(frozen=True)
class Tracking:
    """Where runs go: a server's URI without its credentials, the experiment, and a local store's folder."""

    uri: str
    experiment: str
    folder: Path | None


def connect(tracking_uri: str | None, store: str | Path, experiment: str) -> Tracking:
    """Point this process at a tracking store and make sure that it answers and has the experiment.

    Args:
        tracking_uri: As configured; else `MLFLOW_TRACKING_URI`; else SQLite in the store.
        store: The store; artifacts go beside the database.
        experiment: The experiment's name.

    Raises:
        LiversegError: LS401 when the server does not answer or refuses, within about twelve seconds; LS214
            when none is named and the store is no folder; LS203 and LS701 when that can't be written; LS601
            when another run takes too long to make the database.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    require_tracking(tracking_uri, store)
    folder = None if uri else Path(store).resolve()
    if folder:
        _require_writable(folder)
        uri = sqlite_uri(folder / DATABASE)
    with environment({}):  # MLflow would write the URI there, for every later store and child process
        set_tracking_uri(uri)
    find_moved()
    shown = re.sub("//[^/@]*@", "//", str(uri))  # no credentials in messages
    with environment(IMPATIENT), service(shown):
        if path := sqlite_path(str(uri)):
            make_database(path)
        client = MlflowClient()
        found = client.get_experiment_by_name(experiment)
        if found is None:
            location = (folder / ARTIFACTS).as_uri() if folder else None
            with contextlib.suppress(MlflowException):  # another process may just have created it
                client.create_experiment(experiment, artifact_location=location)
            found = client.get_experiment_by_name(experiment)
        if found is None or found.lifecycle_stage != "active":
            raise MlflowException(f"experiment {experiment} is deleted or cannot be created")
    return Tracking(shown, found.experiment_id, folder)


def connect_patiently(settings: Settings) -> Tracking:
    """`connect` as a stage does: a server that is being restarted is waited for, `register.patience_s` long.

    Raises:
        LiversegError: LS401 when it does not answer for so long; the others of `connect`.
    """
    register, warned = settings.register_, False
    deadline = time.monotonic() + register.patience_s
    while True:
        try:
            return connect(register.tracking_uri, settings.store, register.experiment)
        except LiversegError as error:
            if not _is_silence(error.__cause__) or time.monotonic() > deadline:
                raise
            if not warned:
                LOG.warning("%s; trying again for %.0f s", error.what, register.patience_s)
            warned = True
            time.sleep(RETRY_S)


def open_run(
    tracking: Tracking, key: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]
) -> str:
    """Return the id of this training key's run, going on with the one there is.

    Runs that died with their process are marked KILLED on the way, so that RUNNING means what it says.

    Args:
        tracking: From `connect`.
        key: The training's key.
        name: What a person sees in the list of runs.
        params: Settings, nested as they are; logged once, as `train.learning_rate`.
        tags: More tags.

    Raises:
        LiversegError: LS401 when the server fails.
    """
    with service(tracking.uri):
        client = MlflowClient()
        _sweep(client, tracking.experiment)
        tags = {**tags, KEY: key, OWNER: _owner()}
        run = _find(client, tracking.experiment, key)
        if run is None:
            run = client.create_run(tracking.experiment, tags=tags, run_name=name)
        run_id: str = run.info.run_id
        missing = [
            Param(name, str(value)[:PARAM_LENGTH])
            for name, value in _flat(params)
            if name not in run.data.params
        ]
        client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        for start in range(0, len(missing), BATCH):
            client.log_batch(run_id, params=missing[start : start + BATCH])
        client.update_run(run_id, status="RUNNING")
    return run_id


def find_run(tracking: Tracking, key: str) -> str | None:
    """Return the id of the newest run of a training key, whatever became of it."""
    with service(tracking.uri):
        run = _find(MlflowClient(), tracking.experiment, key)
    return run.info.run_id if run else None


def finish_run(run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
    """Say how a run ended; of one that did not finish only if the server takes it: its own error counts.

    Raises:
        LiversegError: LS401 when a run finished and the server fails.
    """
    if status == "FINISHED":
        with service():
            MlflowClient().set_terminated(run_id, status)
        return
    with environment(IMPATIENT), contextlib.suppress(MlflowException, SQLAlchemyError):
        MlflowClient().set_terminated(run_id, status)


def log_report(tracking: Tracking, run_id: str, folder: Path) -> None:
    """Add the files of a report to a run, under `report/`; one that is there is replaced.

    Raises:
        LiversegError: LS401 when the server fails.
    """
    with service(tracking.uri):
        MlflowClient().log_artifacts(run_id, str(folder), "report")


@contextlib.contextmanager
def service(uri: str | None = None) -> Iterator[None]:
    """Turn MLflow's errors into LS401, or LS203 and LS701 where SQLite can't write to its folder or disk."""
    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        if code := unwritable(error):
            raise cannot_write(code, uri or "the tracking database", reason(error)) from error
        where = f" at {uri}" if uri else ""
        raise LiversegError(
            "LS401",
            f"MLflow{where} failed: {reason(error)}",
            "a tracking store that answers and takes writes",
            "Start it or correct register.tracking_uri, then run the same command again",
        ) from error


def _require_writable(folder: Path) -> None:
    """Make the store's folder; MLflow would try for two minutes to make its database in another's."""
    with writable(folder):
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _sweep(client: MlflowClient, experiment: str) -> None:
    running = client.search_runs(
        [experiment], f"attributes.status = 'RUNNING' and tags.`{OWNER}` LIKE '{socket.gethostname()} %'"
    )
    for run in running:
        if not _alive(run.data.tags[OWNER]):
            client.set_terminated(run.info.run_id, "KILLED")


def _find(client: MlflowClient, experiment: str, key: str) -> Run | None:
    found = client.search_runs([experiment], f"tags.`{KEY}` = '{key}'", max_results=1)
    return found[0] if found else None


def _owner() -> str:
    """Host, process and the second it started: a process id alone may be used again."""
    process = psutil.Process()
    return f"{socket.gethostname()} {process.pid} {process.create_time():.0f}"


def _alive(owner: str) -> bool:
    _, pid, started = owner.rsplit(maxsplit=2)
    try:
        age = psutil.Process(int(pid)).create_time() - float(started)
    except psutil.NoSuchProcess:
        return False
    return bool(-2 < age < 2)


def _flat(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def reason(error: Exception) -> str:
    """What MLflow, or the database below it, says went wrong, in one line."""
    if below := driver_error(error):
        return str(below)
    if _is_silence(error):
        return "no answer"
    # A server's answer may hold a page, a traceback and its own paths, which are nobody's business.
    first = str(error).partition("\n")[0].partition("Response body")[0].partition("Response: ")[0]
    return SERVERS_PATH.sub(r"\1", first).strip(" .")[:200]


def _is_silence(error: BaseException | None) -> bool:
    return "failed with exception" in str(error).partition("\n")[0]
