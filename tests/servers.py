"""Real servers on loopback, one of each for a whole run of the tests, however many processes share it.

Whoever needs a server first starts it, under a lock, in the folder that all processes of the run share; the
others find it there. All of them end with the run, also where that is killed: see guarded.py.
"""

import contextlib
import fcntl
import getpass
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
START_SECONDS = 600.0
PREFECT = str(Path(sys.executable).with_name("prefect"))
SWIFT_PACKAGES = ("swift-proxy", "swift-account", "swift-container", "swift-object", "memcached")
SWIFT = HERE.parent / "infra" / "swift"
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


def free_port_number() -> int:
    """A port of 127.0.0.1 that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def first_of_free_ports(count: int) -> int:
    """The first of several ports in a row that are free."""
    while True:
        first = free_port_number()
        try:
            for port in range(first, first + count):
                socket.create_server(("127.0.0.1", port)).close()
        except (OSError, OverflowError):
            continue
        return first


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _launch(
    owner: int, command: Sequence[str], environment: dict[str, str], log: Path, ready: Callable[[], bool]
) -> "subprocess.Popen[bytes]":
    """Start a command for as long as its owner lives; return when it is ready."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "guarded.py"), str(owner), *command],
            env=environment,
            cwd=log.parent,  # not the repository: what runs here must need only the installed packages
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"{log.name}: not ready, exit code {process.poll()}: {log.read_text()[-2000:]}")
        time.sleep(0.1)
    return process


@dataclass(frozen=True)
class Shared:
    """What the processes of one run of the tests have in common."""

    folder: Path
    owner: int
    """The process that lives as long as the run."""

    def started(
        self,
        name: str,
        start: Callable[[Path], tuple[Sequence[str], dict[str, str], Callable[[], bool], Any]],
    ) -> Any:
        """What a server says of itself (JSON); started by the first who asks.

        Args:
            name: Of the server, its folder and its log.
            start: From the server's folder: its command, environment, whether it is ready, and what it says.
        """
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        log, told = folder / f"{name}.log", folder / "told.json"
        _logs.append(log)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not told.exists():
                command, environment, ready, says = start(folder)
                _launch(self.owner, command, environment, log, ready)
                told.write_text(json.dumps(says))
        return json.loads(told.read_text())


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Of all processes that pytest-xdist started, or of this one."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        return Shared(_made(base.parent / "shared"), os.getppid())
    return Shared(_made(base / "shared"), os.getpid())


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A function that finds a free port of 127.0.0.1."""
    return free_port_number


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], int]:
    """A function that finds the first of so many free ports in a row."""
    return first_of_free_ports


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that a user keeps is read or written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIVERSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def service_environment(_own_cache: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """This environment without anyone's own settings, and with nothing sent to the outside."""
    own = ("PREFECT_", "MLFLOW_", "LIVERSEG_")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)} | {
        "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect-home")),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "NO_COLOR": "1",
        "LIVERSEG_CACHE": os.environ["LIVERSEG_CACHE"],
    }


@pytest.fixture(scope="session")
def postgres(shared: Shared, service_environment: dict[str, str]) -> str | None:
    """HOST:PORT of a Postgres that asks the user postgres for no password; None where it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        return None

    def start(_folder: Path) -> Any:
        port, programs = free_port_number(), found[-1].parent
        place = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own are closed to the user postgres
        as_postgres = []
        if os.getuid() == 0:  # which Postgres refuses to be
            as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
            shutil.chown(place, "postgres", "postgres")
        make = [programs / "initdb", "--pgdata", place / "data", "--username=postgres", "--auth=trust"]
        make += ["--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"]
        subprocess.run([*as_postgres, *make], check=True, capture_output=True, cwd="/")
        told = {"port": port, "unix_socket_directories": "", "fsync": "off", "full_page_writes": "off"}
        options = [part for name, value in told.items() for part in ("-c", f"{name}={value}")]
        command = [*as_postgres, str(programs / "postgres"), "-D", str(place / "data"), *options]
        ready = [str(programs / "pg_isready"), "--quiet", "--host=127.0.0.1", f"--port={port}"]
        environment = service_environment | {"REMOVED_AFTER": str(place)}
        return command, environment, lambda: subprocess.run(ready, check=False).returncode == 0, port

    return f"127.0.0.1:{shared.started('postgres', start)}"


@pytest.fixture(scope="session")
def prefect_server(shared: Shared, service_environment: dict[str, str], postgres: str | None) -> str:
    """The API URL of a `prefect server start`, on Postgres where it is installed.

    On SQLite a request waits up to a minute for the lock of others, when several flows run on a busy machine.
    """

    def start(folder: Path) -> Any:
        port = free_port_number()
        database = f"sqlite+aiosqlite:///{folder / 'prefect.db'}"
        if postgres:
            database = f"postgresql+asyncpg://postgres@{postgres}/postgres"
        environment = service_environment | {
            "PREFECT_HOME": str(folder),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        }
        command = [PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
        url = f"http://127.0.0.1:{port}/api"
        return command, environment, lambda: _answers(f"{url}/health"), url

    return str(shared.started("prefect-server", start))


@pytest.fixture(scope="session")
def prefect_environment(prefect_server: str, service_environment: dict[str, str]) -> dict[str, str]:
    """The environment of someone who uses that server."""
    return service_environment | {"PREFECT_API_URL": prefect_server}


@pytest.fixture(scope="session")
def working_pool(
    tmp_path_factory: pytest.TempPathFactory, prefect_environment: dict[str, str]
) -> Callable[[str], AbstractContextManager[None]]:
    """A function that makes a process work pool, which has a worker within the context it returns."""

    @contextmanager
    def working(pool: str) -> Iterator[None]:
        log = tmp_path_factory.mktemp("prefect-worker") / f"prefect-worker-{pool}.log"
        create = [PREFECT, "work-pool", "create", pool, "--type", "process", "--overwrite"]
        subprocess.run(
            create, env=prefect_environment, check=True, capture_output=True, timeout=START_SECONDS
        )
        environment = prefect_environment | {"PREFECT_WORKER_QUERY_SECONDS": "1"}
        start = ["worker", "start", "--pool", pool, "--type", "process", "--install-policy", "never"]
        _logs.append(log)
        process = _launch(
            os.getpid(), [PREFECT, *start], environment, log, lambda: b"started!" in log.read_bytes()
        )
        yield
        process.send_signal(signal.SIGINT)
        process.wait(START_SECONDS)  # guarded.py ends it by force where it does not by itself

    return working


@pytest.fixture(scope="session")
def prefect_worker(working_pool: Callable[[str], AbstractContextManager[None]]) -> Iterator[str]:
    """The name of a process work pool with a worker."""
    with working_pool("liverseg"):
        yield "liverseg"


@pytest.fixture(scope="session")
def mlflow_server(shared: Shared, service_environment: dict[str, str]) -> str:
    """The URL of an `mlflow server` on SQLite that keeps artifacts in a folder."""

    def start(folder: Path) -> Any:
        port = free_port_number()
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(folder / "artifacts")]
        environment = service_environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        url = f"http://127.0.0.1:{port}"
        return command, environment, lambda: _answers(f"{url}/health"), url

    return str(shared.started("mlflow-server", start))


@dataclass(frozen=True)
class S3Server:
    """An S3 server, and what its log says of reads."""

    url: str
    environment: dict[str, str]
    log: Path
    client: Any

    def put(self, bucket: str, key: str, content: bytes) -> None:
        """Store an object that everybody may read."""
        self.client.put_object(Bucket=bucket, Key=key, Body=content, ACL="public-read")

    def reads(self, prefix: str = "") -> int:
        """How often an object of the bucket `data` below a prefix was asked for."""
        return len(re.findall(rf"\bGET /data/{re.escape(prefix)}[^ ?]*[^ ]* HTTP", self.log.read_text()))


def _s3_client(url: str, key: str, secret: str) -> Any:
    import boto3
    from botocore.config import Config

    checksums = {
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, **checksums),
    )


@pytest.fixture(scope="session")
def s3_client() -> Callable[[str, str, str], Any]:
    """A function that makes a client of an S3 server, from its URL and a login."""
    return _s3_client


def _s3_server(url: str, login: tuple[str, str], log: Path) -> S3Server:
    """The server, once its bucket `data` is there."""
    client, (key, secret) = _s3_client(url, *login), login
    with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):  # by another process
        client.create_bucket(Bucket="data")
    named = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_DEFAULT_REGION": "us-east-1"}
    return S3Server(url, named | {"AWS_ENDPOINT_URL": url}, log, client)


@pytest.fixture(scope="session")
def s3_server(shared: Shared, service_environment: dict[str, str]) -> S3Server:
    """A protocol mock of S3 in a process of its own, with a bucket `data`."""

    def start(_folder: Path) -> Any:
        port = free_port_number()
        command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
        url = f"http://127.0.0.1:{port}"
        return command, service_environment, lambda: _answers(f"{url}/moto-api/"), url

    url = shared.started("s3-server", start)
    return _s3_server(url, ("test", "test"), shared.folder / "s3-server" / "s3-server.log")


@pytest.fixture(scope="session")
def object_store(shared: Shared, service_environment: dict[str, str]) -> S3Server:
    """A real object store that checks signatures, with a bucket `data`; skipped where there is no Swift."""
    if not all(map(shutil.which, ("swift-proxy-server", "swift-object-server", "memcached"))):
        pytest.skip("no OpenStack Swift: apt-get install " + " ".join(SWIFT_PACKAGES))
    login = ("liverseg:store", "testing")

    def start(folder: Path) -> Any:
        port = free_port_number()
        (folder / "key").write_text(login[1])
        places = {"SWIFT_DIR": folder / "etc", "SWIFT_DISKS": folder / "disks", "SWIFT_CACHE": folder}
        door = {"S3_HOST": "127.0.0.1", "S3_PORT": port, "S3_KEY_FILE": folder / "key"}
        inside = {"SWIFT_USER": getpass.getuser(), "SWIFT_PORT": first_of_free_ports(4)}
        told = {name: str(value) for name, value in (places | door | inside).items()}
        environment = service_environment | told
        subprocess.run([SWIFT / "rings.sh"], env=environment, check=True, capture_output=True)
        url = f"http://127.0.0.1:{port}"
        return [str(SWIFT / "start")], environment, lambda: _answers(f"{url}/healthcheck"), url

    url = shared.started("swift", start)
    return _s3_server(url, login, shared.folder / "swift" / "swift.log")
