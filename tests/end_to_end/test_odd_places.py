"""The whole run by nobody, into a folder of an odd name, with proxies that refuse everything."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.whole]
NAME = "a?b %20#ü\"it's"
NOBODY = 12345
CHAMPION = "models:/liverseg@champion"
OWN = (
    "HOME",
    "USER",
    "LOGNAME",
    "LNAME",
    "USERNAME",
    "PREFECT_HOME",
    "LIVERSEG_CACHE",
    "NO_PROXY",
    "no_proxy",
)


class Refusing(http.server.BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.requestline)
        self.send_error(403)

    do_CONNECT = do_POST = do_HEAD = do_GET  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[str]]]:
    """The URL of a proxy that refuses everything, and what it was asked for."""
    asked: list[str] = []
    handler = type("Handler", (Refusing,), {"asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody may write to; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="odd-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def as_nobody(environment: dict[str, str]) -> list[str]:
    """Begins a command of a user whom the system does not know; of whoever runs this, if that is not root."""
    named = [
        "env",
        *(f"--unset={name}" for name in OWN),
        *(f"{name}={value}" for name, value in environment.items()),
    ]
    if os.geteuid():
        return named
    reading = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search")  # what root installed
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *reading, *named]


@pytest.mark.trouble("1.12")
@pytest.mark.trouble("1.13")
@pytest.mark.trouble("2.7")
@pytest.mark.trouble("2.8")
@pytest.mark.trouble("2.10")
def test_everything_is_odd_and_then_the_store_is_moved(
    liverseg: Callable[..., Any],
    phantom: Path,
    tiny: Path,
    command_environment: dict[str, str],
    proxy: tuple[str, list[str]],
    place: Path,
) -> None:
    url, asked = proxy
    source, config = (Path(shutil.copy(path, place)) for path in (phantom, tiny))
    for path in (source, config):
        path.chmod(0o644)
    names = [name + ending for name in ("http", "https") for ending in ("_proxy", "_PROXY")]
    odd = {name.upper() if name.endswith("Y") else name: url for name in names}
    odd |= {"ALL_PROXY": "socks5h://127.0.0.1:9", "PYTHONIOENCODING": "ascii", "TMPDIR": str(place)}
    store = place / NAME / "store"
    settings = ["--config", config, "--store", store, "--set", "train.steps=4", "--json"]
    done = subprocess.run(
        [*as_nobody(odd), sys.executable, "-m", "flows.cli", "run", source, *settings],
        env=command_environment,
        cwd=place,
        capture_output=True,
        timeout=1200,
        check=False,
    )
    said = done.stderr.decode("ascii")
    assert done.returncode == 0, said
    assert asked == []
    result = json.loads(done.stdout)
    assert (result["register"]["version"], result["report"]["page"].startswith(str(store))) == (1, True)
    assert (store / "mlflow.db").exists()
    assert {path.name for path in place.iterdir()} >= {NAME}
    assert not (place / "a").exists()

    moved = Path(shutil.move(store, place / f"moved {NAME}"))
    shutil.rmtree(store.parent)
    here = ["--store", moved]
    assert liverseg("models", "list", *here, "--json").ok().data[0]["aliases"] == ["candidate", "champion"]
    assert liverseg("models", "show", "@champion", *here, "--json").ok().data["version"] == 1
    liverseg("models", "promote", "1", *here).ok()
    page = liverseg("report", CHAMPION, *here).ok().out.strip()
    assert Path(page).is_relative_to(moved)
    scan = place / "liver_0.nii.gz"
    with tarfile.open(source) as archive:
        member = archive.extractfile("Task03_Liver/imagesTr/liver_0.nii.gz")
        assert member
        scan.write_bytes(member.read())
    liverseg("predict", scan, "--model", CHAMPION, *here, "-o", place / "label.nii.gz").ok()
    again = ["--config", config, *here, "--set", "train.steps=4", "--json"]
    assert not liverseg("retrain", source, *again).ok().data["retrained"]
    trained = liverseg("run", source, *again, "--set", "train.learning_rate=0.03").ok().data
    assert (trained["ingest"]["made"], trained["register"]["version"]) == (0, 2)
    assert not store.parent.exists(), "nothing reached into where it was"
