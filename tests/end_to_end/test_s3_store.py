"""Source and store on S3 through the real command line: the same bytes as on disk, whatever is killed."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from liverseg_core.artifacts.s3_store import S3Store
from liverseg_core.artifacts.stages import INGEST, STAGES
from liverseg_core.config import StorageConfig

pytestmark = pytest.mark.slow

Run = Callable[..., Any]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(params=["s3_server", pytest.param("object_store", marks=pytest.mark.whole)])
def bucket(request: pytest.FixtureRequest) -> Any:
    """The mock of S3, then the real object store."""
    return request.getfixturevalue(request.param)


def opened(url: str, bucket: Any, copies: Path, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """The store as another machine sees it."""
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    return S3Store(url, StorageConfig(copies=str(copies)))


def digests(store: S3Store) -> dict[str, Any]:
    """What the manifests list, by stage and key."""
    return {
        f"{stage.folder}/{key}": artifact.manifest["files"]
        for stage in STAGES
        for key in store.folders(stage)
        if (artifact := store.find(stage, key))
    }


def on_disk(store: Path) -> dict[str, Any]:
    return {
        f"{path.parts[-3]}/{path.parts[-2]}": json.loads(path.read_text())["files"]
        for path in store.glob("*/*/manifest.json")
    }


def steady(files: list[dict[str, Any]]) -> list[Any]:
    """Files by path and digest; of a film, which a busy encoder varies, of page and card, which say when they
    were written, the path."""
    varying = (".mp4", "report.html", "model_card.md")
    return [one["path"] if one["path"].endswith(varying) else one for one in files]


def test_the_whole_flow(
    liverseg: Run,
    phantom: Path,
    tiny: Path,
    tmp_path: Path,
    bucket: Any,
    stored: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket.put("data", "flow.tar", phantom.read_bytes())
    url = f"s3://data/{tmp_path.name}/store"
    arguments = ["run", "s3://data/flow.tar", "--config", tiny, "--store", url, "--workers", 2]
    settings = bucket.environment | {
        "LIVERSEG_CACHE": str(tmp_path / "cache"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
    }
    refused = liverseg(*arguments, **bucket.environment)
    assert (refused.code, refused.error[:5]) == (2, "LS214")
    done = liverseg(*arguments, "--json", **settings).ok().data
    assert done["ingest"]["made"] == 7
    assert done["register"]["version"] == 1
    store = opened(url, bucket, tmp_path / "elsewhere", monkeypatch)
    expected = on_disk(stored.path)
    found = digests(store)
    assert len(found) == 12
    assert found.keys() <= expected.keys()
    for key, files in found.items():
        assert steady(files) == steady(expected[key]), f"{key}: the same digests as on disk"
    again = liverseg(*arguments, "--json", **settings).ok().data
    assert all(stage["cached"] for stage in again.values())
    status = liverseg("status", "--store", url, "--json", **settings).ok().data
    assert [row["complete"] for row in status["stages"]] == [7, 1, 1, 1, 1, 1]
    assert liverseg("doctor", "--store", url, **settings).code == 0
    scan = tmp_path / "scan.nii.gz"
    model = store.fetch(STAGES[2], done["train"]["key"])
    native = store.fetch(INGEST, done["ingest"]["cases"][0]["key"]) / "label.nii.gz"
    scan.write_bytes(native.read_bytes())  # any volume will do
    liverseg("predict", scan, "--model", model, "-o", tmp_path / "labels.nii.gz").ok()
    removed = liverseg("gc", "--store", url, "--older-than", 0, "--json", **settings).ok().data
    assert {row["state"] for row in removed} == {"removed"}
    assert not [row for row in removed if row["place"].startswith("s3://")], "nothing was orphaned"
    assert digests(store) == found


@pytest.mark.whole
def test_a_killed_ingest_goes_on(
    liverseg: Run, start: Start, tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar, fresh = tmp_path / "p.tar", tmp_path / "fresh"
    liverseg("phantom", tar, "--cases", 8, "--unlabelled", 0, "--size", "96,96,64").ok()
    bucket.put("data", "killed-store.tar", tar.read_bytes())
    url = f"s3://data/{tmp_path.name}/store"
    source = ["ingest", "s3://data/killed-store.tar", "--set", "ingest.spacing_mm=[1.5,1.5,1.5]"]
    arguments = [*source, "--workers", 2, "--store", url]
    settings = bucket.environment | {"LIVERSEG_CACHE": str(tmp_path / "cache")}
    store = opened(url, bucket, tmp_path / "elsewhere", monkeypatch)
    process = start(*arguments, **settings)
    deadline = time.monotonic() + 600
    while len(digests(store)) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
    children = psutil.Process(process.pid).children(recursive=True)
    for child in (process, *children):
        child.kill()
    process.communicate()
    assert not psutil.wait_procs(children, timeout=15)[1]
    before = digests(store)
    assert 2 <= len(before) < 8, "the kill was meant to land in the middle"
    for key in store.folders(INGEST):  # what is there is whole
        if f"cases/{key}" in before:
            store.fetch(INGEST, key)
    done = liverseg(*arguments, "--json", **settings).ok().data
    assert done["made"] == 8 - len(before)
    liverseg(*source[:1], tar, *source[2:], "--workers", 2, "--store", fresh).ok()
    assert digests(store) == on_disk(fresh)
    liverseg("gc", "--store", url, "--older-than", 0, **settings).ok()
    prefix = f"{tmp_path.name}/store/cases/"
    left = bucket.client.list_objects_v2(Bucket="data", Prefix=prefix)["Contents"]
    per_case = len(next(iter(before.values()))) + 1
    documents = {"index.jsonl.gz", "latest.json"}
    assert len([one for one in left if one["Key"].rpartition("/")[2] not in documents]) == 8 * per_case
