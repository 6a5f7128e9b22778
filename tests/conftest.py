"""Real servers on loopback for the end-to-end tests: started once a session, stopped by process id."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

START_SECONDS = 120.0
STOP_SECONDS = 10.0
PREFECT = str(Path(sys.executable).with_name("prefect"))
_logs: list[Path] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of every server's log below a failed test."""
    report = yield
    if report.failed:
        report.sections += [
            (log.name, log.read_text(errors="replace")[-4000:]) for log in _logs if log.exists()
        ]
    return report


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def _running(
    command: list[str], environment: dict[str, str], log: Path, ready: Callable[[], bool]
) -> Iterator[None]:
    """A process of its own group, with its output in `log`, from when it is ready."""
    _logs.append(log)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=log.parent,  # not the repository: what runs here must need only the installed packages
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{log.name}: not ready, exit code {process.poll()}")
            time.sleep(0.2)
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGKILL):  # a worker in the background ignores SIGTERM
            try:
                os.killpg(process.pid, number)
                process.wait(STOP_SECONDS)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A function that finds a free port of 127.0.0.1."""
    return _free_port


@pytest.fixture(scope="session")
def service_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """This environment without anyone's own settings, and with nothing sent to the outside."""
    own = ("PREFECT_", "MLFLOW_", "LIVERSEG_")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)} | {
        "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect-home")),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "NO_COLOR": "1",
    }


@pytest.fixture(scope="session")
def prefect_server(
    tmp_path_factory: pytest.TempPathFactory, service_environment: dict[str, str]
) -> Iterator[str]:
    """The API URL of a `prefect server start` on SQLite."""
    folder, port = tmp_path_factory.mktemp("prefect-server"), _free_port()
    environment = service_environment | {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder / 'prefect.db'}",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
    }
    command = [PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
    url = f"http://127.0.0.1:{port}/api"
    with _running(command, environment, folder / "prefect-server.log", lambda: _answers(f"{url}/health")):
        yield url


@pytest.fixture(scope="session")
def prefect_environment(prefect_server: str, service_environment: dict[str, str]) -> dict[str, str]:
    """The environment of someone who uses that server."""
    return service_environment | {"PREFECT_API_URL": prefect_server}


@pytest.fixture(scope="session")
def prefect_worker(
    tmp_path_factory: pytest.TempPathFactory, prefect_environment: dict[str, str]
) -> Iterator[str]:
    """The name of a process work pool with a worker."""
    pool, log = "liverseg", tmp_path_factory.mktemp("prefect-worker") / "prefect-worker.log"
    create = [PREFECT, "work-pool", "create", pool, "--type", "process", "--overwrite"]
    subprocess.run(create, env=prefect_environment, check=True, capture_output=True, timeout=START_SECONDS)
    environment = prefect_environment | {"PREFECT_WORKER_QUERY_SECONDS": "1"}
    command = [PREFECT, "worker", "start", "--pool", pool, "--type", "process", "--install-policy", "never"]
    with _running(command, environment, log, lambda: b"started!" in log.read_bytes()):
        yield pool


@pytest.fixture(scope="session")
def mlflow_server(
    tmp_path_factory: pytest.TempPathFactory, service_environment: dict[str, str]
) -> Iterator[str]:
    """The URL of an `mlflow server` on SQLite that keeps artifacts in a folder."""
    folder, port = tmp_path_factory.mktemp("mlflow-server"), _free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = service_environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    url = f"http://127.0.0.1:{port}"
    with _running(command, environment, folder / "mlflow-server.log", lambda: _answers(f"{url}/health")):
        yield url
