"""`mlflow models serve`: a scan in, labels and volumes out, over HTTP."""

import base64
import gzip
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.whole]

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def served(
    stored: Any,
    command_environment: dict[str, str],
    free_port: Callable[[], int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The URL of a server of the champion."""
    folder, port = tmp_path_factory.mktemp("serving"), free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/liverseg@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    environment = command_environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{stored.path / 'mlflow.db'}"}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    log = folder / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=output, stderr=output, start_new_session=True
        )
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 600
    try:
        while not answers(f"{url}/ping"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def ask(served: str) -> Ask:
    """A function that sends one scan and returns what the server makes of it."""

    def call(scan: dict[str, Any], **params: Any) -> Any:
        body = {"dataframe_records": [scan], **({"params": params} if params else {})}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{served}/invocations", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["predictions"]

    return call


@pytest.fixture(scope="module")
def scan(stored: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of the phantom's scans as a file."""
    path = tmp_path_factory.mktemp("scan") / "liver_0.nii.gz"
    with tarfile.open(stored.source) as archive:
        member = archive.extractfile("Task03_Liver/imagesTr/liver_0.nii.gz")
        assert member is not None
        path.write_bytes(member.read())
    return path


def test_a_scan_goes_in_and_labels_and_volumes_come_out(
    ask: Ask, scan: Path, liverseg: Callable[..., Any], stored: Any, tmp_path: Path
) -> None:
    """By path and as an array, in every form, the same as `liverseg predict` gives."""
    out = tmp_path / "label.nii.gz"
    model = ["--model", "models:/liverseg@champion", "--store", stored.path]
    (expected,) = liverseg("predict", scan, *model, "-o", out, "--json").ok().data
    label = np.asarray(nib.load(out).dataobj)
    assert label.any()

    np.testing.assert_array_equal(np.array(ask({"path": str(scan)})), label)
    image = nib.load(scan)
    array = {"image": np.asarray(image.dataobj).tolist(), "affine": image.affine.tolist()}
    found = ask(array, volumes=True)
    np.testing.assert_array_equal(np.array(found["labels"]), label)
    assert {name: expected[name] for name in found["volumes"]} == pytest.approx(found["volumes"])
    assert {"liver_ml", "tumour_ml", "burden", "lesions"} <= found["volumes"].keys()

    file = tmp_path / "served.nii.gz"
    packed = ask({"path": str(scan)}, labels="nifti", volumes=True)
    file.write_bytes(base64.b64decode(packed["labels"]))
    np.testing.assert_array_equal(np.asarray(nib.load(file).dataobj), label)
    np.testing.assert_array_equal(nib.load(file).affine, image.affine)
    assert packed["volumes"] == found["volumes"]
    bare = ask({"path": str(scan)}, labels="none", volumes=True)
    assert bare == {name: packed[name] for name in ("volumes", "flags", "remarks")}
    assert (bare["flags"], bare["remarks"]) == (expected["flags"], expected["remarks"])


@pytest.mark.parametrize(
    ("scan", "params", "code"),
    [
        pytest.param({"path": "/nowhere.nii.gz"}, {}, "LS301", id="no file"),
        pytest.param({"image": [[[0]]]}, {}, "LS292", id="no affine"),
        pytest.param({"path": "broken"}, {}, "LS311", id="damaged"),
        pytest.param({"path": "broken"}, {"labels": "dicom"}, "LS293", id="a form there is not"),
    ],
)
def test_what_is_wrong_is_said(
    ask: Ask, scan: dict[str, Any], params: dict[str, Any], code: str, tmp_path: Path
) -> None:
    if scan.get("path") == "broken":
        (tmp_path / "broken.nii.gz").write_bytes(gzip.compress(b"x" * 1000)[:-6])
        scan = {"path": str(tmp_path / "broken.nii.gz")}
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(scan, **params)
    assert code in refused.value.read().decode()
