"""A registered model where nothing but its own requirements is installed, and what its server answers."""

import ast
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from stages import conftest as registrations

from liverseg_core.config import RegisterConfig
from liverseg_core.errors import LiversegError
from tasks.registry.publish import EXAMPLE, REQUIREMENTS, register
from tasks.registry.tracking import connect

model, registration = registrations.model, registrations.registration
ROWS = {
    "2.12": (
        "the registered model in an environment made from its own requirements.txt",
        "pyfunc.load_model and mlflow models predict work; the requirements are what is imported, no more",
    ),
    "4 answers": (
        "MLflow's 400 answers carry server paths and stack traces",
        "the served model's and our own errors are one coded line without either",
    ),
}
VENV_SECONDS = 900


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served") / "store"


@pytest.fixture
def stored(
    store_folder: Path, registration: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The folder of a registered model, as MLflow has stored it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracking = connect(None, store_folder, "liverseg")
    if not list(store_folder.glob("mlflow-artifacts/models/*")):
        before = [*sys.path]
        register(tracking, registration(tracking, config=RegisterConfig(model="liverseg")))
        assert sys.path == before
    (found,) = store_folder.glob("mlflow-artifacts/models/*/artifacts")
    yield found
    mlflow.set_tracking_uri(None)


def imported(file: Path, root: Path, seen: set[Path]) -> set[str]:
    """Top-level modules that a file imports, and those below `root` that it imports, anywhere in them."""
    seen.add(file)
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            path = root / name.replace(".", "/")
            for below in (path.with_suffix(".py"), path / "__init__.py"):
                if below.is_file() and below not in seen:
                    found |= imported(below, root, seen)
            found.add(name.partition(".")[0])
    return found


@pytest.mark.trouble("2.12")
def test_the_requirements_are_what_is_imported(stored: Path) -> None:
    names = imported(stored / "pyfunc.py", stored / "code", set()) - set(sys.stdlib_module_names)
    of_module = {**packages_distributions(), "mlflow": ["mlflow"]}  # it comes in three
    needed = {of_module[name][0].lower() for name in names - {"liverseg_core"}}
    assert needed == set(REQUIREMENTS)
    told = (stored / "requirements.txt").read_text().split()
    assert told == [f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS]
    assert not list(stored.rglob("__pycache__"))


@pytest.mark.trouble("2.12")
@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.timeout(2 * VENV_SECONDS)
def test_it_is_loaded_and_served_from_them_alone(stored: Path, tmp_path: Path) -> None:
    """In a new environment, from a folder with nothing in it."""
    (here := tmp_path / "here").mkdir()
    programs = tmp_path / "venv" / "bin"

    def run(*command: object) -> str:
        done = subprocess.run(
            [str(one) for one in command],
            cwd=here,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
            timeout=VENV_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    run(sys.executable, "-m", "venv", programs.parent)
    run(programs / "pip", "install", "--quiet", "--no-compile", "-r", stored / "requirements.txt")
    (here / "example.json").write_text(json.dumps(EXAMPLE))
    load = f"import json, mlflow; loaded = mlflow.pyfunc.load_model({str(stored)!r})"
    shown = run(
        programs / "python", "-c", f"{load}; print(loaded.predict(json.load(open('example.json'))).tolist())"
    )
    label = mlflow.pyfunc.load_model(str(stored)).predict(EXAMPLE)
    np.testing.assert_array_equal(json.loads(shown.splitlines()[-1]), label)
    given = stored / "serving_input_example.json"
    run(
        programs / "mlflow",
        "models",
        "predict",
        "-m",
        stored,
        "-i",
        given,
        "-o",
        "out.json",
        "--env-manager",
        "local",
    )
    np.testing.assert_array_equal(json.loads((here / "out.json").read_text())["predictions"], label)


@pytest.mark.trouble("4 answers")
def test_the_served_model_answers_in_a_line(stored: Path) -> None:
    from fastapi.testclient import TestClient
    from mlflow.pyfunc.scoring_server import init

    loaded = mlflow.pyfunc.load_model(str(stored))
    with TestClient(init(loaded)) as client:

        def refused(code: str, status: int, scan: dict[str, Any]) -> None:
            answer = client.post("/invocations", json={"dataframe_records": [scan]})
            assert answer.status_code == status
            assert f"{code}: " in answer.json()["message"]
            assert "stack_trace" not in answer.json()
            for path in (str(stored), sys.prefix, "site-packages", "Traceback"):
                assert path not in answer.text

        refused("LS301", 400, {"path": "/nowhere/scan.nii.gz"})
        refused("LS292", 400, {"image": [[[0]]]})
        loaded.unwrap_python_model().model = None
        refused("LS222", 500, EXAMPLE)


class Refusing(http.server.BaseHTTPRequestHandler):
    """A tracking server that tells all about itself."""

    body = b""

    def do_GET(self) -> None:
        self.send_response(400)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        pass


TRACE = 'Traceback (most recent call last):\n  File "/srv/mlflow/venv/lib/store.py", line 3, in get'
BODIES = [
    json.dumps({"error_code": "INVALID_PARAMETER_VALUE", "message": f"no /srv/mlflow/db.sqlite\n{TRACE}"}),
    json.dumps({"error_code": "BAD_REQUEST", "message": "bad", "stack_trace": TRACE}),
    json.dumps({"detail": TRACE}),
    f"<html>{TRACE}</html>",
]


@pytest.mark.trouble("4 answers")
@pytest.mark.parametrize("body", BODIES)
def test_a_servers_paths_are_not_repeated(body: str, tmp_path: Path) -> None:
    handler = type("Handler", (Refusing,), {"body": body.encode()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        with pytest.raises(LiversegError, match="LS401") as caught:
            connect(f"http://127.0.0.1:{server.server_port}", tmp_path, "liverseg")
        server.shutdown()
    mlflow.set_tracking_uri(None)
    assert not any(part in str(caught.value) for part in ("/srv/mlflow", "Traceback", "File ", "\n"))
