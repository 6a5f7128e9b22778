"""Real servers on loopback for the end-to-end tests: started once a session, stopped by process id."""

import getpass
import itertools
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

START_SECONDS = 600.0
STOP_SECONDS = 10.0
PREFECT = str(Path(sys.executable).with_name("prefect"))
SWIFT_PACKAGES = ("swift-proxy", "swift-account", "swift-container", "swift-object", "memcached")
SWIFT = Path(__file__).parents[1] / "infra" / "swift"
LONGEST = ("test_cluster.py", "test_readme.py", "test_image.py", "test_bad_input.py")
_logs: list[Path] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that of several processes none has them left at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


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


def _free_ports(count: int) -> int:
    """The first of several ports in a row that are free."""
    while True:
        first = _free_port()
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
def free_ports() -> Callable[[int], int]:
    """A function that finds the first of so many free ports in a row."""
    return _free_ports


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
        with _running([PREFECT, *start], environment, log, lambda: b"started!" in log.read_bytes()):
            yield

    return working


@pytest.fixture(scope="session")
def prefect_worker(working_pool: Callable[[str], AbstractContextManager[None]]) -> Iterator[str]:
    """The name of a process work pool with a worker."""
    with working_pool("liverseg"):
        yield "liverseg"


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

    def reads(self) -> int:
        """How often an object was asked for."""
        return len(re.findall(r"\bGET /[^/ ?]+/[^ ]+ HTTP", self.log.read_text()))


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


def _s3_environment(url: str, key: str, secret: str) -> dict[str, str]:
    login = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_DEFAULT_REGION": "us-east-1"}
    return login | {"AWS_ENDPOINT_URL": url}


@pytest.fixture(scope="session")
def s3_server(
    tmp_path_factory: pytest.TempPathFactory, service_environment: dict[str, str]
) -> Iterator[S3Server]:
    """A protocol mock of S3 in a process of its own, with a bucket `data`."""
    log, port = tmp_path_factory.mktemp("s3-server") / "s3-server.log", _free_port()
    url, login = f"http://127.0.0.1:{port}", ("test", "test")
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, service_environment, log, lambda: _answers(f"{url}/moto-api/")):
        client = _s3_client(url, *login)
        client.create_bucket(Bucket="data")
        yield S3Server(url, _s3_environment(url, *login), log, client)


@pytest.fixture(scope="session")
def object_store(
    tmp_path_factory: pytest.TempPathFactory, service_environment: dict[str, str]
) -> Iterator[S3Server]:
    """A real object store that checks signatures, with a bucket `data`; skipped where there is no Swift."""
    if not all(map(shutil.which, ("swift-proxy-server", "swift-object-server", "memcached"))):
        pytest.skip("no OpenStack Swift: apt-get install " + " ".join(SWIFT_PACKAGES))
    folder, port = tmp_path_factory.mktemp("swift"), _free_port()
    url, login, log = f"http://127.0.0.1:{port}", ("liverseg:store", "testing"), folder / "swift.log"
    (folder / "key").write_text(login[1])
    places = {"SWIFT_DIR": folder / "etc", "SWIFT_DISKS": folder / "disks", "SWIFT_CACHE": folder}
    door = {"S3_HOST": "127.0.0.1", "S3_PORT": port, "S3_KEY_FILE": folder / "key"}
    inside = {"SWIFT_USER": getpass.getuser(), "SWIFT_PORT": _free_ports(4)}
    environment = service_environment | {name: str(value) for name, value in (places | door | inside).items()}
    subprocess.run([SWIFT / "rings.sh"], env=environment, check=True, capture_output=True)
    command = [str(SWIFT / "start")]
    with _running(command, environment, log, lambda: _answers(f"{url}/healthcheck")):
        client = _s3_client(url, *login)
        client.create_bucket(Bucket="data")
        yield S3Server(url, _s3_environment(url, *login), log, client)


@dataclass
class RangeServer:
    """Files behind HTTP that are served by ranges, unless a fault is due.

    `once` are the faults of the next requests, one each; `always` is that of every other one.
    """

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    etag: str = '"1"'
    once: list[str] = field(default_factory=list)
    always: str = ""
    requests: list[tuple[int, int]] = field(default_factory=list)
    """First and last byte of every range asked for."""


class _RangeHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: RangeServer
    disable_nagle_algorithm = True

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        served = self.served
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert asked, self.headers["Range"]
        first, last = int(asked[1]), int(asked[2])
        served.requests.append((first, last))
        fault = served.once.pop(0) if served.once else served.always
        data = served.files.get(self.path.partition("?")[0])
        if data is None:
            return self.send_error(404)
        if first >= len(data):
            return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        last = min(last, len(data) - 1)
        return self._with(fault, data, first, last)

    def _with(self, fault: str, data: bytes, first: int, last: int) -> None:
        body = data[first : last + 1]
        headers = {"Content-Range": f"bytes {first}-{last}/{len(data)}", "ETag": self.served.etag}
        changed = {
            "shifted": {"Content-Range": f"bytes {first + 1}-{last + 1}/{len(data)}"},
            "other size": {"Content-Range": f"bytes {first}-{last}/{len(data) + 512}"},
            "other version": {"ETag": '"2"'},
            "encoded": {"Content-Encoding": "gzip"},
        }
        dropped = {"no range": "Content-Range", "no version": "ETag"}.get(fault)
        headers = {name: text for name, text in (headers | changed.get(fault, {})).items() if name != dropped}
        if fault.isdigit():
            self._send(int(fault), b"no", {"Retry-After": "0"})
        elif fault.startswith("to "):
            self._send(302, b"", {"Location": fault[3:]})
        elif fault == "expired":
            self._send(400, b"<Error><Code>ExpiredToken</Code><Message>m</Message></Error>")
        elif fault == "whole":
            self._send(200, data)
        elif fault == "short":
            self._send(206, body[: len(body) // 2], headers, len(body))
        elif fault in ("silent", "slow", "reset", "noise", "endless header"):
            self._fail(fault, headers, body)
        else:
            self._send(206, body + b"more" if fault == "longer" else body, headers)

    def _fail(self, fault: str, headers: dict[str, str], body: bytes) -> None:
        self.close_connection = True
        if fault == "silent":
            time.sleep(3)
        elif fault == "slow":
            self._trickle(headers, body)
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            raise ConnectionResetError
        elif fault == "noise":
            self.wfile.write(os.urandom(2000))
        else:
            self.wfile.write(b"HTTP/1.1 206 OK\r\n" + b"X: y\r\n" * 1000)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, claimed: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if claimed is None else claimed))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = claimed is not None

    def _trickle(self, headers: dict[str, str], body: bytes) -> None:
        """A byte now and then: no single wait is long."""
        self.send_response(206)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        for at in itertools.count():
            self.wfile.write(body[at : at + 1])
            time.sleep(0.05)


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that went away, and resets, are what the tests are about."""


@pytest.fixture
def range_server() -> Iterator[RangeServer]:
    """A server of ranges on 127.0.0.1, and its faults."""
    with _serving_ranges() as served:
        yield served


@pytest.fixture
def secure_range_server(tmp_path: Path) -> Iterator[tuple[RangeServer, Path]]:
    """The same over TLS, as `localhost`, and the certificate that vouches for it."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost"
    )
    command += f" -addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}"
    subprocess.run(command.split(), check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with _serving_ranges(context) as served:
        served.url = served.url.replace("http://127.0.0.1", "https://localhost")
        yield served, certificate


@contextmanager
def _serving_ranges(context: ssl.SSLContext | None = None) -> Iterator[RangeServer]:
    server = _QuietServer(("127.0.0.1", 0), _RangeHandler)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    served = RangeServer(f"http://127.0.0.1:{server.server_address[1]}")
    server.RequestHandlerClass = type("Handler", (_RangeHandler,), {"served": served})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield served
    server.shutdown()
    server.server_close()
