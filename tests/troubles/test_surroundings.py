"""Proxies, a user whom the system does not know, an output that is ASCII."""

import getpass
import http.server
import io
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.local_api import no_proxy_for_httpx
from liverseg_core.surroundings import give_home, name_user, spare_loopback

ROWS = {
    "2.7": (
        "HTTP_PROXY, HTTPS_PROXY and ALL_PROXY set, NO_PROXY not",
        "nothing on this machine is asked for through a proxy",
    ),
    "2.8": (
        "a user id without a passwd entry, HOME unset or not writable",
        "the whole run works and registers",
    ),
    "2.10": ("PYTHONIOENCODING=ascii", "every verb prints, with a question mark for what can't be shown"),
}
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")


class Server(http.server.ThreadingHTTPServer):
    """Answers everything with a status, and counts."""

    def __init__(self, status: int) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.status, self.asked = status, 0
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked += 1
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_CONNECT = do_HEAD = do_GET  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, Server]]:
    """One on this machine, and a proxy that refuses whatever it is asked for, in every variable."""
    ours, proxy = Server(200), Server(403)
    for name in (*PROXIES, "NO_PROXY"):
        for spelling in (name, name.lower()):
            monkeypatch.delenv(spelling, raising=False)
            if name in PROXIES:
                monkeypatch.setenv(spelling, proxy.url)
    yield ours, proxy
    for server in (ours, proxy):
        server.shutdown()
        server.server_close()


def ask_with_every_library(url: str) -> None:
    import boto3
    import httpx
    import requests
    from botocore.config import Config
    from websockets.proxy import get_proxy
    from websockets.uri import parse_uri

    port = url.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost"):
        there = f"http://{host}:{port}"
        assert urllib.request.build_opener().open(there, timeout=5).status == 200
        assert httpx.get(there, timeout=5).status_code == 200
        assert requests.get(there, timeout=5).status_code == 200
        assert get_proxy(parse_uri(f"ws://{host}:{port}/events")) is None
        login = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
        config = Config(s3={"addressing_style": "path"}, retries={"max_attempts": 0})
        boto3.client("s3", endpoint_url=there, config=config, **login).head_bucket(Bucket="data")
    assert requests.utils.should_bypass_proxies(f"http://[::1]:{port}", None)


@pytest.mark.trouble("2.7")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "127.0.0.1,localhost,::1"),
        ({"NO_PROXY": ""}, "127.0.0.1,localhost,::1"),
        ({"no_proxy": ""}, "127.0.0.1,localhost,::1"),
        ({"no_proxy": ".example.org, 10.0.0.1"}, ".example.org,10.0.0.1,127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "localhost", "no_proxy": "a"}, "localhost,a,127.0.0.1,::1"),
    ],
)
def test_nothing_on_this_machine_goes_through_a_proxy(
    servers: tuple[Server, Server], before: dict[str, str], after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, proxy = servers
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    spare_loopback()
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == after
    ask_with_every_library(ours.url)
    assert (ours.asked > 0, proxy.asked) == (True, 0)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.build_opener().open("http://example.com", timeout=5)
    assert proxy.asked == 1, "all else still does"


@pytest.mark.trouble("2.7")
def test_what_is_said_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    spare_loopback()
    assert "NO_PROXY" not in os.environ
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "*")
    spare_loopback()
    assert (os.environ["NO_PROXY"], os.environ.get("no_proxy")) == ("*", None)
    assert no_proxy_for_httpx() == {}


@pytest.mark.trouble("2.7")
@pytest.mark.parametrize("proxy", ["socks5h://127.0.0.1:9", "socks4://a", "nonsense://b"])
def test_prefects_client_is_made_though_it_can_not_speak_to_the_proxy(
    servers: tuple[Server, Server], proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx
    import requests

    ours, _ = servers
    for name in PROXIES:
        monkeypatch.setenv(name.lower(), proxy)
    spare_loopback()
    with pytest.raises((ImportError, ValueError)):
        httpx.Client()
    for name, value in no_proxy_for_httpx().items():
        monkeypatch.setenv(name, value)
    assert httpx.get(ours.url, timeout=5).status_code == 200
    assert requests.get(ours.url, timeout=5).status_code == 200
    assert not requests.utils.should_bypass_proxies("http://example.org", None), "to others nothing changes"


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user whom the system does not know; the folder for temporary files."""
    monkeypatch.setattr("os.getuid", lambda: 12345)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in (*NAMES, "HOME", "PREFECT_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return tmp_path


@pytest.mark.trouble("2.8")
def test_a_user_whom_the_system_does_not_know_has_a_name(
    unknown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyError):
        getpass.getuser()
    name_user()
    assert getpass.getuser() == "uid-12345"
    monkeypatch.delenv("LOGNAME")
    monkeypatch.setenv("USER", "ada")
    name_user()
    assert getpass.getuser() == "ada"


@pytest.mark.trouble("2.8")
@pytest.mark.parametrize("home", [None, "", "/nonexistent"])
def test_and_a_home(unknown: Path, home: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of that name that is another user's, as this one is, is not taken."""
    if home is not None:
        monkeypatch.setenv("HOME", home)
    (unknown / "liverseg-12345").mkdir(mode=0o700)
    give_home()
    found = Path.home()
    assert found.parent == unknown
    assert found != unknown / "liverseg-12345"
    assert found.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr("os.getuid", os.geteuid)
    monkeypatch.setenv("HOME", "/nonexistent")
    give_home()
    assert Path.home() == unknown / f"liverseg-{os.geteuid()}"
    give_home()
    assert Path.home() == unknown / f"liverseg-{os.geteuid()}", "the same each time"


@pytest.mark.trouble("2.8")
def test_a_home_that_is_there_stays(unknown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hold the credentials of a store."""
    monkeypatch.setattr("os.getuid", os.geteuid)
    monkeypatch.setenv("HOME", str(unknown))
    give_home()
    assert "PREFECT_HOME" not in os.environ
    monkeypatch.setattr("os.access", lambda *_: False)
    give_home()
    folder = unknown / f"liverseg-{os.geteuid()}"
    assert (os.environ["HOME"], os.environ["PREFECT_HOME"]) == (str(unknown), str(folder / ".prefect"))


@pytest.mark.trouble("2.10")
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_every_letter_can_be_printed(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import console

    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr("sys.stdout", streams[0])
    monkeypatch.setattr("sys.stderr", streams[1])
    console.show_anyhow()
    console.DATA.print(console.plain_table(("a – b", "≥"), [["Löwe_3 ± 中", None]]))
    console.say("“–” → ×")
    print("\udcff €", file=sys.stderr)
    for stream in streams:
        stream.flush()
    shown, said = (stream.buffer.getvalue().decode(encoding) for stream in streams)  # type: ignore[attr-defined]
    assert "_3" in shown
    assert said.splitlines()[1].startswith("?")


@pytest.mark.trouble("2.10")
def test_a_command_in_ascii(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    command = [sys.executable, "-m", "flows.cli", "verify", str(tmp_path / "Löwe – ü.tar")]
    done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=100)
    assert done.returncode == 3
    assert done.stderr.decode("ascii").startswith("LS301: ")
    done = subprocess.run(
        [*command[:3], "--help"], env=environment, capture_output=True, check=False, timeout=100
    )
    assert done.returncode == 0
    assert "verify" in done.stdout.decode("ascii")
