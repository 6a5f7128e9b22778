"""Sources on S3 and behind HTTP through the real command line: same cases, few requests, kills."""

import hashlib
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

pytestmark = pytest.mark.slow

Run = Callable[..., Any]
Start = Callable[..., subprocess.Popen[str]]
Times = Callable[[Path], dict[str, int]]
NAMED = {"LIVERSEG_REMOTE__ALLOWED_HOSTS": "127.0.0.1", "LIVERSEG_REMOTE__BACKOFF_S": "0.01"}


def stored_bytes(store: Path) -> dict[str, Any]:
    """Every file of the cases, by key, with its digest."""
    return {
        path.parent.name: json.loads(path.read_text())["files"]
        for path in store.glob("cases/*/manifest.json")
    }


@pytest.fixture(params=["s3_server", pytest.param("object_store", marks=pytest.mark.whole)])
def bucket(request: pytest.FixtureRequest) -> Any:
    """The mock of S3, then the real object store."""
    return request.getfixturevalue(request.param)


def same_cases(
    liverseg: Run, arguments: list[object], environment: dict[str, str], expected: dict[str, Any]
) -> None:
    done = liverseg(*arguments, "--workers", 2, "--json", **environment).ok().data
    assert (done["made"], done["quarantined"], done["source"]) == (7, [], arguments[1])
    assert stored_bytes(Path(str(arguments[-1]))) == expected


def test_the_same_cases_from_s3(
    liverseg: Run, phantom: Path, tiny: Path, ingested: Path, tmp_path: Path, bucket: Any
) -> None:
    bucket.put("data", "p/phantom.tar", phantom.read_bytes())
    arguments = ["ingest", "s3://data/p/phantom.tar", "--config", tiny, "--store", tmp_path / "store"]
    same_cases(liverseg, arguments, bucket.environment, stored_bytes(ingested))
    before = bucket.reads("p/phantom.tar")
    assert liverseg(*arguments, "--json", **bucket.environment).ok().data["cached"]
    assert bucket.reads("p/phantom.tar") - before == 1
    if "testing" in bucket.environment.values():  # the mock takes any secret
        wrong = bucket.environment | {"AWS_SECRET_ACCESS_KEY": "wrong"}
        ended = liverseg("verify", arguments[1], "--workers", 0, **wrong)
        assert (ended.code, ended.error[:5]) == (4, "LS407")


def test_the_same_cases_from_http(
    liverseg: Run, phantom: Path, tiny: Path, ingested: Path, tmp_path: Path, range_server: Any
) -> None:
    range_server.files["/phantom.tar"] = phantom.read_bytes()
    source = f"{range_server.url}/phantom.tar"
    arguments = ["ingest", source, "--config", tiny, "--store", tmp_path / "store"]
    same_cases(liverseg, arguments, NAMED, stored_bytes(ingested))
    range_server.requests.clear()
    assert liverseg(*arguments, "--json", **NAMED).ok().data["cached"]
    assert len(range_server.requests) == 1


def test_checksum(liverseg: Run, phantom: Path, range_server: Any) -> None:
    range_server.files["/phantom.tar"] = phantom.read_bytes()
    md5 = hashlib.md5(phantom.read_bytes()).hexdigest()
    for source in (phantom, f"{range_server.url}/phantom.tar"):
        arguments = ["verify", source, "--workers", 0]
        ended = liverseg(*arguments, "--checksum", "--json", **NAMED).ok()
        assert ended.data["md5"] == md5
        assert "none is known" in ended.err
        assert "as expected" in liverseg(*arguments, "--md5", md5.upper(), **NAMED).ok().err
        refused = liverseg(*arguments, "--md5", "0" * 32, **NAMED)
        assert (refused.code, refused.error[:5]) == (3, "LS304")
    assert liverseg("verify", phantom, "--workers", 0, "--json").ok().data["md5"] is None


@pytest.mark.whole
def test_ingest_from_s3_goes_on_after_a_kill(
    liverseg: Run, start: Start, finished_at: Times, s3_server: Any, tmp_path: Path
) -> None:
    tar, store, fresh = tmp_path / "p.tar", tmp_path / "store", tmp_path / "fresh"
    liverseg("phantom", tar, "--cases", 8, "--unlabelled", 0, "--size", "96,96,64").ok()
    s3_server.put("data", "killed.tar", tar.read_bytes())
    arguments = ["--store", store, "--set", "ingest.spacing_mm=[1.5,1.5,1.5]", "--workers", 2]
    process = start("ingest", "s3://data/killed.tar", *arguments, **s3_server.environment)
    deadline = time.monotonic() + 600
    while len(finished_at(store)) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    assert not psutil.wait_procs(children, timeout=15)[1]
    before = finished_at(store)
    assert 2 <= len(before) < 8, "the kill was meant to land in the middle"
    done = liverseg("ingest", "s3://data/killed.tar", *arguments, "--json", **s3_server.environment).ok().data
    assert done["made"] == 8 - len(before)
    after = finished_at(store)
    assert {name: after[name] for name in before} == before
    liverseg("ingest", tar, "--store", fresh, *arguments[2:]).ok()
    assert stored_bytes(store) == stored_bytes(fresh)


@pytest.mark.parametrize(
    ("fault", "code", "exit_code"),
    [("503", "LS405", 4), ("other version", "LS408", 4)],
)
def test_a_server_that_fails_in_mid_ingest(
    liverseg: Run,
    range_server: Any,
    phantom: Path,
    tiny: Path,
    tmp_path: Path,
    fault: str,
    code: str,
    exit_code: int,
) -> None:
    """The stage stops with one line; what was stored stays, and the same command goes on."""
    range_server.files["/phantom.tar"] = phantom.read_bytes()
    source = f"{range_server.url}/phantom.tar"
    arguments = ["ingest", source, "--config", tiny, "--store", tmp_path / "store", "--workers", 0, "--json"]
    liverseg("ingest", *arguments[1:-1], "--limit", 1, **NAMED).ok()
    begun = len(range_server.requests)
    range_server.once = [""]
    range_server.always = fault
    ended = liverseg(*arguments, **NAMED)
    assert (ended.code, ended.error[:5]) == (exit_code, code)
    assert "Traceback" not in ended.err
    assert len(range_server.requests) > begun + 1
    range_server.always = ""
    assert liverseg(*arguments, **NAMED).ok().data["made"] == 6


def test_addresses_that_nobody_named(liverseg: Run, range_server: Any, tmp_path: Path) -> None:
    ended = liverseg("verify", f"{range_server.url}/phantom.tar", "--workers", 0)
    assert (ended.code, ended.error[:5]) == (2, "LS211")
    assert not range_server.requests
    allowed = liverseg("verify", f"{range_server.url}/none", "--set", "remote.allowed_hosts=127.0.0.1")
    assert (allowed.code, allowed.error[:5]) == (3, "LS301")
