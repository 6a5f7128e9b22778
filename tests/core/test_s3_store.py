"""A store in a bucket, on the mock and on the real object store: whole or absent, whoever is killed when."""

import hashlib
import itertools
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from liverseg_core.artifacts import s3_lease, s3_objects, s3_store, s3_transfer
from liverseg_core.artifacts.artifact import Artifact, Recipe, Stage, load, verify
from liverseg_core.artifacts.case_index import INDEX, remember, stored_facts
from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.artifacts.location import open_store
from liverseg_core.artifacts.produce import produce
from liverseg_core.artifacts.s3_store import S3Store
from liverseg_core.artifacts.stages import INGEST
from liverseg_core.config import StorageConfig

PLAIN = Stage("plain", "plains", version=1)
RESUMABLE = Stage("resumable", "resumables", version=1, resumable=True)
CONTENT = {"a.bin": b"a" * 5000, "b/c.bin": b"c", "b/empty": b""}
QUICK = {"attempts": 2, "backoff_s": 0.01, "timeout_s": 5.0}
Machine = Callable[[str], S3Store]


def make(folder: Path) -> dict[str, object]:
    for name, data in CONTENT.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return {"answer": 42}


def fail(folder: Path) -> dict[str, object]:
    pytest.fail("made again")


def recipe(stage: Stage = PLAIN, **config: object) -> Recipe:
    return Recipe(stage, config, {})


def digests(made: Artifact) -> dict[str, str]:
    return {entry["path"]: entry["sha256"] for entry in made.manifest["files"]}


@pytest.fixture(params=["s3_server", "object_store"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The mock of S3, then the real object store; this process has its credentials."""
    found = request.getfixturevalue(request.param)
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    return found


@pytest.fixture
def machine(server: Any, tmp_path: Path) -> Iterator[Machine]:
    """A machine of this name, with the same store and its own copies."""
    prefix = hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]

    def call(name: str) -> S3Store:
        options = StorageConfig(endpoint=server.url, copies=str(tmp_path / name), **QUICK)
        return S3Store(f"s3://data/{prefix}", options)

    yield call
    s3_store._in_use.clear()


def objects(server: Any, store: S3Store) -> set[str]:
    prefix = store.url.partition("data/")[2] + "/"
    listed = server.client.list_objects_v2(Bucket="data", Prefix=prefix).get("Contents", [])
    return {entry["Key"].removeprefix(prefix) for entry in listed}


def complete_or_absent(store: S3Store, stage: Stage, key: str) -> None:
    if store.find(stage, key):
        fetched = load(store.fetch(stage, key))
        assert fetched
        verify(fetched)


@pytest.mark.parametrize("stage", [PLAIN, RESUMABLE], ids=lambda stage: stage.name)
def test_made_once_for_every_machine(server: Any, machine: Machine, stage: Stage) -> None:
    here, there = machine("here"), machine("there")
    made = produce(here, recipe(stage), make)
    assert (made.cached, made.facts, sorted(digests(made))) == (False, {"answer": 42}, sorted(CONTENT))
    assert here.copies.find(stage, made.key) is not None if stage.resumable else True
    assert not list(here.copies.root.rglob(".staging*"))
    found = produce(there, recipe(stage), fail)
    assert found.cached
    assert found.manifest == made.manifest
    folder = there.fetch(stage, made.key)
    fetched = load(folder)
    assert fetched
    assert fetched.manifest == made.manifest
    verify(fetched)
    assert {name: (folder / name).read_bytes() for name in CONTENT} == CONTENT
    assert there.place(found).startswith(f"{there.url}/{stage.folder}/{made.key}/")
    attempt = made.manifest["attempt"]
    names = {f"{stage.folder}/{made.key}/{attempt}/{name}" for name in CONTENT}
    assert objects(server, here) == names | {f"{stage.folder}/{made.key}/manifest.json"}
    survey = here.survey(stage)
    assert (survey.complete, survey.size) == (1, 5001)


def test_a_copy_that_is_there_is_not_fetched_again(server: Any, machine: Machine) -> None:
    store = machine("here")
    key = produce(store, recipe(), make).key
    first = store.fetch(PLAIN, key)
    before = server.reads()
    assert store.fetch(PLAIN, key) == first
    assert server.reads() - before == 1, "the manifest alone"


def test_the_first_of_two_makers_counts(server: Any, machine: Machine) -> None:
    """Both make different bytes for one key at the same time, as two kinds of GPU may."""
    here, there = machine("here"), machine("there")
    first = []

    def slower(folder: Path) -> dict[str, object]:
        first.append(produce(here, recipe(), make))
        (folder / "other.bin").write_bytes(b"other")
        return {"answer": 41}

    second = produce(there, recipe(), slower)
    assert second.manifest == first[0].manifest
    assert second.facts == {"answer": 42}
    assert load(there.fetch(PLAIN, second.key)).manifest == first[0].manifest  # type: ignore[union-attr]
    assert len(objects(server, here)) == len(CONTENT) + 1, "the other's files are gone"


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", ["put", "create", "get", "delete"])
def test_a_crash_at_any_request(
    server: Any, machine: Machine, monkeypatch: pytest.MonkeyPatch, call: str, after: bool
) -> None:
    """Stop before or after the n-th request of each kind, for every n; then again from another machine."""
    real, crashed = getattr(s3_objects, call), True
    for n in itertools.count():
        one, counter = recipe(n=n), itertools.count()

        def crash(*arguments: Any, _counter: Any = counter, _n: int = n) -> Any:
            stop = next(_counter) == _n
            result = None if stop and not after else real(*arguments)
            if stop:
                raise KeyboardInterrupt
            return result

        with monkeypatch.context() as patch:
            for module in (s3_store, s3_transfer):
                patch.setattr(module, call, crash, raising=False)
            patch.setattr(s3_transfer, "AT_ONCE", 1)
            try:
                produce(machine("here"), one, make)
                crashed = False
            except KeyboardInterrupt:
                pass
        complete_or_absent(machine("reader"), PLAIN, one.key)
        made = produce(machine("there"), one, make)
        assert sorted(digests(made)) == sorted(CONTENT)
        complete_or_absent(machine("reader"), PLAIN, one.key)
        if not crashed:
            break
    assert n > 0 or call == "delete"
    survey = machine("there").survey(PLAIN)
    assert survey.complete == n + 1
    for leftover in survey.leftovers:
        assert machine("there").discard(leftover)
    assert machine("there").survey(PLAIN).leftovers == ()
    for k in range(n + 1):
        complete_or_absent(machine("another"), PLAIN, recipe(n=k).key)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of a second."""
    for name, value in {"RENEWED_EVERY_S": 0.3, "STALE_S": 3.0, "SETTLED_S": 0.2}.items():
        monkeypatch.setattr(s3_lease, name, value)


def test_what_takes_long_is_made_by_one(machine: Machine, build: SimpleNamespace, impatient: None) -> None:
    def make_and_look(folder: Path) -> dict[str, object]:
        refusal = build.refusal(produce, machine("there"), recipe(RESUMABLE), fail)
        assert refusal == "LS601"
        (leftover,) = (one for one in machine("there").survey(RESUMABLE).leftovers if "s3://" in one.place)
        assert not machine("there").discard(leftover)
        return make(folder)

    made = produce(machine("here"), recipe(RESUMABLE), make_and_look)
    assert made.facts == {"answer": 42}
    assert produce(machine("there"), recipe(RESUMABLE), fail).cached


@pytest.mark.parametrize("name", ["here", "there"])
def test_what_was_mirrored_survives_its_machine(
    server: Any, machine: Machine, impatient: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A training that is killed goes on here at once, and on another machine when its lease is stale."""
    store, key = machine("here"), recipe(RESUMABLE).key

    def die(folder: Path) -> dict[str, object]:
        checkpoints = folder / "checkpoints"
        checkpoints.mkdir()
        for step in range(3):
            (checkpoints / f"{step}").write_bytes(b"%d" % step)
            (checkpoints / f"{step - 2}").unlink(missing_ok=True)
            (checkpoints / "best").write_bytes(b"best%d" % step)
            store.mirror(RESUMABLE, key, checkpoints)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(s3_lease, "delete", lambda *_: None)  # a kill leaves the lease
        with pytest.raises(KeyboardInterrupt):
            produce(store, recipe(RESUMABLE), die)

    def go_on(folder: Path) -> dict[str, object]:
        found = {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()}
        assert found == {"1": b"1", "2": b"2", "best": b"best2"}
        shutil.rmtree(folder / "checkpoints")
        return make(folder)

    made = produce(machine(name), recipe(RESUMABLE), go_on)
    assert sorted(digests(made)) == sorted(CONTENT)
    assert not any(".staging" in key for key in objects(server, store))


@pytest.mark.parametrize(
    ("name", "code"), [("missing", "LS502"), ("changed", "LS502"), ("manifest", "LS501"), ("gone", "LS505")]
)
def test_damage_in_the_bucket_is_named(
    server: Any, machine: Machine, build: SimpleNamespace, name: str, code: str
) -> None:
    store = machine("here")
    made = produce(store, recipe(), make)
    base = store.url.partition("data/")[2] + f"/plains/{made.key}"
    file = f"{base}/{made.manifest['attempt']}/a.bin"
    if name == "missing":
        server.client.delete_object(Bucket="data", Key=file)
    elif name == "changed":
        server.put("data", file, b"b" * 5000)
    elif name == "manifest":
        server.put("data", f"{base}/manifest.json", b"{}")
    else:
        server.client.delete_object(Bucket="data", Key=f"{base}/manifest.json")
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


def test_small_documents(machine: Machine) -> None:
    store = machine("here")
    assert store.read("d/x.json") is None
    store.create("d/x.json", b"first")
    store.create("d/x.json", b"second")
    assert store.read("d/x.json") == b"first"
    store.write("d/x.json", b"third")
    assert store.read("d/x.json") == b"third"


def test_the_index_finds_a_finished_set_with_one_listing(
    server: Any, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = machine("here")
    made = [produce(store, recipe(INGEST, n=n), make) for n in range(5)]
    keys = [one.key for one in made]
    expected = [{"answer": 42}] * 5 + [None]
    assert list(stored_facts(store, [*keys, "f" * 32])) == expected, "from the manifests"
    before = server.reads()
    assert list(stored_facts(store, [*keys, "f" * 32])) == expected
    assert server.reads() - before == 1, "the index alone"
    for damage in (b"", b"x", (store.read(INDEX) or b"")[:-9]):
        store.write(INDEX, damage)
        assert list(stored_facts(store, keys)) == expected[:5]
    gone = made[0]
    server.client.delete_object(
        Bucket="data", Key=f"{store.url.partition('data/')[2]}/cases/{gone.key}/manifest.json"
    )
    for name in CONTENT:
        key = f"{store.url.partition('data/')[2]}/cases/{gone.key}/{gone.manifest['attempt']}/{name}"
        server.client.delete_object(Bucket="data", Key=key)
    assert list(stored_facts(store, keys)) == [None, *expected[1:5]], "believed of no absent case"
    remember(store, {})
    assert list(stored_facts(store, keys)) == [None, *expected[1:5]]


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


def test_what_kills_leave_on_disk_is_found(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    made = produce(store, recipe(), make)
    with store.staging(PLAIN, "k" * 32) as staging:
        (staging / "x.bin").write_bytes(b"half")
        (leftover,) = store.survey(PLAIN).leftovers
        assert (Path(leftover.place), leftover.size) == (staging, 4)
        assert not store.discard(leftover), "a run holds it"
    assert store.discard(leftover)
    survey = store.survey(PLAIN)
    manifest = len((made.path / "manifest.json").read_bytes())
    assert (survey.complete, survey.size, survey.leftovers) == (1, 5001 + manifest, ())
    assert json.loads((made.path / "manifest.json").read_bytes())["key"] == made.key
