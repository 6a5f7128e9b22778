"""A temporary Prefect API for one process, when none is configured.

Prefect's own ephemeral server is started in the middle of the first request, talks on the terminal, and is
stopped while the last task states are still on their way. This one starts first and boots while the command
line imports torch, keeps quiet, is stopped only when every state has arrived, and never outlives its client.

    python -P -m flows.local_api FD PARENT HOME

is the server process: it serves on the inherited, already listening socket FD.
"""

import fcntl
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING

from liverseg_core.environment import environment
from liverseg_core.errors import LiversegError

if TYPE_CHECKING:
    import httpx

BOOT_SECONDS = 90.0  # the first start also creates the database: 6 s on an idle machine
DRAIN_SECONDS = 3.0
STOP_SECONDS = 5.0
FINAL_STATES = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # The terminal shows warnings only; the API still gets every INFO record of a run.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
}
# An `ephemeral` app runs no scheduler, late runs, foreman and the like; these it would run, and one local
# run has no use for them.
SPARE_SERVICES = ("EVENT_PERSISTER", "EVENT_LOGGER", "TRIGGERS")
LATE = (
    "fastapi.encoders",
    "prefect.artifacts",
    "prefect.flow_engine",
    "prefect.task_engine",
    "prefect.utilities.visualization",
)
"""What Prefect imports here once a flow or a task starts: free while the server boots."""


@dataclass(frozen=True)
class LocalApi:
    """A server process that was started, and may not be ready yet."""

    url: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    started: datetime

    def wait(self) -> None:
        """Return when the API answers.

        Raises:
            LiversegError: LS410 if the server ended, or did not answer in time.
        """
        import httpx

        for name in LATE:
            import_module(name)
        deadline = time.monotonic() + BOOT_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            # The socket listens from the start, so one request simply waits until the server takes it.
            try:
                httpx.get(f"{self.url}/health", timeout=5.0, trust_env=False).raise_for_status()
            except httpx.HTTPError:
                time.sleep(0.05)
            else:
                return
        self.log.seek(0)
        last = self.log.read().decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise LiversegError(
            "LS410",
            f"the temporary Prefect API did not start: {last[0]}",
            f"a server that answers within {BOOT_SECONDS:.0f} s",
            "Set PREFECT_API_URL to a running Prefect server, or free memory and run the command again",
        )

    def drain(self) -> None:
        """Wait, for a few seconds at most, until the API holds the final states of what ran here.

        Task states travel as events and reach the database after the flow has ended.
        """
        import httpx
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        logging.getLogger("EventsWorker").setLevel(logging.ERROR)  # it warns that there is something to send
        EventsWorker.drain_all(timeout=DRAIN_SECONDS)
        APILogWorker.drain_all(timeout=DRAIN_SECONDS)
        deadline, last = time.monotonic() + DRAIN_SECONDS, -1
        # No answer: the server is gone, and with it what there was to wait for.
        with suppress(httpx.HTTPError), httpx.Client(base_url=self.url, trust_env=False) as client:
            while time.monotonic() < deadline:
                finished = [*self._finished(client, "flow_runs"), *self._finished(client, "task_runs")]
                if all(finished) and len(finished) == last:
                    return
                last = len(finished)
                time.sleep(0.1)

    def _finished(self, client: "httpx.Client", kind: str) -> list[bool]:
        """Of each run that started after this server: whether it is over."""
        since = {"flow_runs": {"start_time": {"after_": self.started.isoformat()}}}
        answer = client.post(f"/{kind}/filter", json=since).raise_for_status()
        return [run["state_type"] in FINAL_STATES for run in answer.json()]

    def stop(self) -> None:
        """End the server, by force if it takes longer than a few seconds."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                self.process.send_signal(number)
            try:
                self.process.wait(STOP_SECONDS)
                break
            except subprocess.TimeoutExpired:
                continue
        self.log.close()


@contextmanager
def local_api(home: Path | None = None) -> Iterator[LocalApi | None]:
    """Give this process a Prefect API unless one is configured in the environment or the active profile.

    Enter it before the slow imports and call `wait` on its value just before the flow.

    Args:
        home: Folder of the temporary server's database; default: `liverseg` in Prefect's home. Runs side by
            side may share it.

    Yields:
        The server, or None when a configured one is used.

    Raises:
        LiversegError: LS410 if the folder cannot be made.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if os.environ.get("PREFECT_API_URL"):
        yield None
        return
    # Started before Prefect is imported: a profile with an API is rare, half a second is not.
    api = start(home or Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser() / "liverseg")
    try:
        with _used(api) as used:
            yield used
    finally:
        api.stop()


@contextmanager
def _used(api: LocalApi) -> Iterator[LocalApi | None]:
    """Point Prefect at the server, and at the end wait for it to have taken everything in."""
    from prefect.context import refresh_global_settings_context
    from prefect.settings import (
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_UI_URL,
        get_current_settings,
        temporary_settings,
    )

    if get_current_settings().api.url:
        api.stop()
        yield None
        return
    try:
        with environment({"PREFECT_API_URL": api.url, **no_proxy_for_httpx()}):
            refresh_global_settings_context()
            try:
                # Nobody watches the heartbeats of a local run, and to end their thread takes up to a second.
                # Nor are there pages that a link could lead to later.
                with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_UI_URL: ""}):
                    yield api
            finally:
                api.drain()
    finally:
        refresh_global_settings_context()


def no_proxy_for_httpx() -> dict[str, str]:
    """Variables that have Prefect's client look at no proxy.

    It sets up every one that is named, and dies of those that it can't speak to, such as SOCKS, though none
    would be asked on the way to this machine. A star among other names means everything to httpx alone.
    """
    told = {name: os.environ.get(name, "") for name in ("NO_PROXY", "no_proxy")}
    return {name: f"{value},*" for name, value in told.items() if value and "*" not in value}


def start(home: Path) -> LocalApi:
    """Start a server on a free port of 127.0.0.1 and return at once."""
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LiversegError(
            "LS410",
            f"no place for the temporary Prefect API: {error}",
            "a writable folder",
            "Set PREFECT_HOME",
        ) from error
    log = TemporaryFile()  # noqa: SIM115  (closed by stop)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "flows.local_api",
                str(listener.fileno()),
                str(os.getpid()),
                str(home),
            ],
            env=os.environ | _server_environment(home),
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches the flow, which then still needs its API
        )
    return LocalApi(f"http://{host}:{port}/api", process, log, datetime.now(UTC))


def _server_environment(home: Path) -> dict[str, str]:
    return {
        **{f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in SPARE_SERVICES},
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home.resolve() / 'prefect.db'}",
        "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
        "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
        "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
        "PREFECT_PLUGINS_ENABLED": "false",
        **dict.fromkeys(("NO_PROXY", "no_proxy"), "*"),  # it asks nobody but itself
        "PY_KEY_VALUE_DISABLE_BEARTYPE": "true",  # checks of types while it runs, made at its start
    }


def serve(descriptor: int, parent: int, home: Path) -> None:
    """Serve the API on an open socket until told to stop or `parent` is gone."""
    gc.disable()  # nothing of an import is garbage, and looking for it takes half a second
    listener = socket.socket(fileno=descriptor)
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    threading.Thread(target=_warm, args=listener.getsockname(), daemon=True).start()
    import uvicorn
    from prefect.server.api.server import create_app

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            # Two servers that create one database at the same time would trip over each other's tables.
            with (home / "start.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                await super().startup(sockets)
            gc.enable()

    config = uvicorn.Config(create_app(ephemeral=True, final=True), log_level="error", lifespan="on")
    Server(config).run(sockets=[listener])


def _warm(host: str, port: int) -> None:
    """Send the first request, which builds the routes, while the client still imports."""
    with socket.create_connection((host, port)) as connection:
        connection.sendall(b"GET /api/admin/version HTTP/1.0\r\n\r\n")
        connection.recv(1)


def _follow(parent: int) -> None:
    """End this process soon after its parent, however that ended: it has no one left to serve."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
