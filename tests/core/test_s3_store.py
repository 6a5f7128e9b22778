"""A store in a bucket, on the mock and on a real object store: what every store promises, and copies."""

import contextlib
import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from store_contract import (
    BOTH,
    CONTENT,
    FACTS,
    PLAIN,
    Call,
    Killed,
    Past,
    StoreContract,
    fail,
    make,
    recipe,
)

from liverseg_core.artifacts import s3_lease, s3_store, s3_transfer
from liverseg_core.artifacts.artifact import Artifact, Stage, load
from liverseg_core.artifacts.case_index import stored_facts
from liverseg_core.artifacts.location import open_store
from liverseg_core.artifacts.produce import produce
from liverseg_core.artifacts.s3_store import S3Store
from liverseg_core.artifacts.stages import INGEST
from liverseg_core.config import StorageConfig

QUICK = {"attempts": 2, "backoff_s": 0.01, "timeout_s": 5.0}
Machine = Callable[..., S3Store]


class Below(Past):
    """The objects of a bucket below a prefix."""

    def __init__(self, server: Any, prefix: str) -> None:
        self.server, self.prefix = server, prefix

    def names(self) -> set[str]:
        listed = self.server.client.list_objects_v2(Bucket="data", Prefix=self.prefix).get("Contents", [])
        return {entry["Key"].removeprefix(self.prefix) for entry in listed}

    def get(self, name: str) -> bytes:
        body: bytes = self.server.client.get_object(Bucket="data", Key=self.prefix + name)["Body"].read()
        return body

    def put(self, name: str, data: bytes) -> None:
        self.server.put("data", self.prefix + name, data)

    def remove(self, name: str) -> None:
        self.server.client.delete_object(Bucket="data", Key=self.prefix + name)

    def folder(self, stage: Stage, made: Artifact) -> str:
        return f"{stage.folder}/{made.key}/{made.manifest['attempt']}"


@pytest.fixture(params=["s3_server", pytest.param("object_store", marks=pytest.mark.whole)])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The mock of S3, then the real object store; this process has its credentials."""
    found = request.getfixturevalue(request.param)
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    return found


@pytest.fixture
def machine(server: Any, tmp_path: Path) -> Iterator[Machine]:
    """Machines have copies of their own."""
    prefix = hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]

    def call(name: str, part: str = "") -> S3Store:
        options = StorageConfig(endpoint=server.url, copies=str(tmp_path / name), **QUICK)
        return S3Store(f"s3://data/{prefix}/{part}".rstrip("/"), options)

    yield call
    s3_store._in_use.clear()


@pytest.fixture
def past(server: Any, machine: Machine) -> Below:
    return Below(server, machine("here").url.partition("data/")[2] + "/")


class TestS3Store(StoreContract):
    @pytest.fixture(autouse=True)
    def _impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Leases of a second."""
        for name, value in {"RENEWED_EVERY_S": 0.3, "STALE_S": 3.0, "SETTLED_S": 0.2}.items():
            monkeypatch.setattr(s3_lease, name, value)

    @pytest.fixture(params=["put", "create", "get", "delete"])
    def call(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Call:
        """Requests, one after another; none of a lease, which another machine would wait for."""
        monkeypatch.setattr(s3_transfer, "AT_ONCE", 1)
        return Call((s3_store, s3_transfer), request.param, PLAIN, may_be_rare=request.param == "delete")

    @pytest.fixture
    def killed(self, monkeypatch: pytest.MonkeyPatch) -> Killed:
        @contextlib.contextmanager
        def kill() -> Iterator[None]:
            with monkeypatch.context() as patch:
                patch.setattr(s3_lease, "delete", lambda *_: None)  # a kill leaves the lease
                with pytest.raises(KeyboardInterrupt):
                    yield

        return kill

    @BOTH
    def test_only_what_took_long_is_kept_here(self, machine: Machine, stage: Stage) -> None:
        store = machine("here")
        key = produce(store, recipe(stage), make).key
        assert (store.copies.find(stage, key) is not None) == stage.resumable
        assert not list(store.copies.root.rglob(".staging*"))


def test_a_copy_that_is_there_is_not_fetched_again(server: Any, machine: Machine, past: Below) -> None:
    store = machine("here")
    key = produce(store, recipe(), make).key
    first = store.fetch(PLAIN, key)
    before = server.reads(past.prefix)
    assert store.fetch(PLAIN, key) == first
    assert server.reads(past.prefix) - before == 1, "the manifest alone"


def test_the_first_of_two_makers_counts(past: Past, machine: Machine) -> None:
    """Both make different bytes for one key at the same time, as two kinds of GPU may."""
    here, there = machine("here"), machine("there")
    first = []

    def slower(folder: Path) -> dict[str, object]:
        first.append(produce(here, recipe(), make))
        (folder / "other.bin").write_bytes(b"other")
        return {"answer": 41}

    second = produce(there, recipe(), slower)
    assert second.manifest == first[0].manifest
    assert second.facts == FACTS
    assert load(there.fetch(PLAIN, second.key)).manifest == first[0].manifest  # type: ignore[union-attr]
    assert len(past.names()) == len(CONTENT) + 1, "the other's files are gone"


@pytest.mark.parametrize(
    ("name", "code"), [("missing", "LS502"), ("changed", "LS502"), ("manifest", "LS501"), ("gone", "LS505")]
)
def test_damage_in_the_bucket_is_named(
    past: Past, machine: Machine, build: SimpleNamespace, name: str, code: str
) -> None:
    store = machine("here")
    made = produce(store, recipe(), make)
    file, manifest = f"{past.folder(PLAIN, made)}/a.bin", f"plains/{made.key}/manifest.json"
    if name == "missing":
        past.remove(file)
    elif name == "changed":
        past.put(file, b"b" * 5000)
    elif name == "manifest":
        past.put(manifest, b"{}")
    else:
        past.remove(manifest)
    assert build.refusal(store.fetch, PLAIN, made.key) == code
    assert not list((store.copies.root / "plains").glob("[!.]*"))


HOLDER = """
import sys
from liverseg_core.artifacts.artifact import Stage
from liverseg_core.config import StorageConfig
from liverseg_core.artifacts.s3_store import S3Store
store = S3Store(sys.argv[1], StorageConfig(endpoint=sys.argv[2], copies=sys.argv[3]))
print(store.fetch(Stage("plain", "plains", version=1), sys.argv[4]), flush=True)
sys.stdin.read()
"""


def test_copies_in_use_stay(server: Any, machine: Machine) -> None:
    store = machine("here")
    key = produce(store, recipe(), make).key
    command = [sys.executable, "-c", HOLDER, store.url, server.url, str(store.options.copies), key]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout
        folder = Path(reader.stdout.readline().strip())
        (copy,) = store.survey(PLAIN).leftovers
        assert Path(copy.place) == folder
        assert not store.discard(copy)
        assert (folder / "a.bin").exists()
        reader.communicate()
    assert store.discard(copy)
    assert not folder.exists()
    assert produce(store, recipe(), fail).cached, "the store itself lost nothing"


def test_a_finished_set_is_found_with_one_read(server: Any, machine: Machine, past: Below) -> None:
    store = machine("here")
    keys = [produce(store, recipe(INGEST, n=n), make).key for n in range(5)]
    expected = [FACTS] * 5 + [None]
    assert list(stored_facts(store, [*keys, "f" * 32])) == expected, "from the manifests"
    before = server.reads(past.prefix)
    assert list(stored_facts(store, [*keys, "f" * 32])) == expected
    assert server.reads(past.prefix) - before == 1, "the index alone"


class _Failing(BaseHTTPRequestHandler):
    statuses: list[int]

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        status = self.statuses.pop(0)
        body = b"hello" if status == 200 else b"<Error><Code>SlowDown</Code></Error>"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_a_server_that_fails(build: SimpleNamespace, s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    handler = type("Handler", (_Failing,), {"statuses": [503, 200, 503, 503, 403]})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as flaky:
        threading.Thread(target=flaky.serve_forever, daemon=True).start()
        store = open_store(
            "s3://data/p", StorageConfig(endpoint=f"http://127.0.0.1:{flaky.server_port}", **QUICK)
        )
        assert store.read("x") == b"hello", "asked again"
        assert build.refusal(store.read, "x") == "LS411"
        assert build.refusal(store.read, "x") == "LS412"
        flaky.shutdown()
    assert build.refusal(store.read, "x") == "LS411", "nobody listens"
    absent = open_store("s3://no-such-bucket/p", StorageConfig(endpoint=s3_server.url, **QUICK))
    assert build.refusal(absent.write, "x", b"") == "LS413"


def test_wrong_credentials(
    build: SimpleNamespace, object_store: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in (object_store.environment | {"AWS_SECRET_ACCESS_KEY": "wrong"}).items():
        monkeypatch.setenv(name, value)
    options = StorageConfig(endpoint=object_store.url, region="us-west-1", copies=str(tmp_path), **QUICK)
    assert build.refusal(open_store("s3://data/p", options).read, "x") == "LS412"
