"""The tracking database under kills: the same command run again finds it whole, or makes it."""

import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient
from sqlalchemy import Engine, event

from liverseg_core.errors import LiversegError
from tasks.registry.database import is_half_made, make_database
from tasks.registry.files import sqlite_path
from tasks.registry.tracking import Tracking, connect, find_run, open_run

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def forked(work: Callable[[], object]) -> int:
    """Begin work in a process that has everything imported already, and is over within a minute."""
    if child := os.fork():
        return child
    signal.alarm(60)
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def ending(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def connect_to(store: Path) -> None:
    connect(None, store, "liverseg")


def with_mlflow_alone(store: Path) -> None:
    """As liverseg did it once, except that nothing is synced."""

    def lazily(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", lazily)
    MlflowClient(f"sqlite:///{store / 'mlflow.db'}").search_experiments()


def statements(work: Callable[[Path], None], store: Path, last: int | None = None) -> int:
    """Count what is asked of databases; killed at the `last`."""
    count = 0

    def counted(*arguments: object) -> None:
        nonlocal count
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "before_cursor_execute", counted)
    try:
        work(store)
    finally:
        event.remove(Engine, "before_cursor_execute", counted)
    return count


def works(store: Path) -> bool:
    tracking = connect(None, store, "liverseg")
    run_id = open_run(tracking, "key", "name", {}, {})
    assert find_run(tracking, "key") == run_id
    with closing(sqlite3.connect(store / "mlflow.db")) as database:
        return database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def left(store: Path) -> list[tuple[str, int]]:
    return sorted((path.name, path.stat().st_size) for path in store.iterdir())


@pytest.mark.trouble("2.1")
def test_killed_at_any_moment_of_a_first_start_the_next_one_works(tmp_path: Path) -> None:
    total = statements(connect_to, tmp_path / "whole")
    assert total > 500
    found = []
    for part in range(1, 21):
        (store := tmp_path / str(part)).mkdir()
        last = total * part // 20
        assert ending(forked(lambda store=store, last=last: statements(connect_to, store, last))) == -9
        if (state := left(store)) not in found:  # as another was left
            found.append(state)
            assert works(store)
    assert len(found) > 1


@pytest.mark.trouble("2.1")
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_when_the_file_gets_its_name(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if moment == "after":
            rename(self, target)
        os.kill(os.getpid(), signal.SIGKILL)
        return target

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        assert ending(forked(lambda: connect_to(tmp_path))) == -9
    assert (tmp_path / "mlflow.db").exists() == (moment == "after")
    assert works(tmp_path)


@pytest.mark.trouble("2.1")
def test_one_that_mlflow_half_made_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.registry.database.QUIET_S", -1)
    for last in (2, 50, 500):
        (store := tmp_path / str(last)).mkdir()
        assert ending(forked(lambda store=store, last=last: statements(with_mlflow_alone, store, last))) == -9
        assert is_half_made(store / "mlflow.db")
        assert works(store)
        assert not is_half_made(store / "mlflow.db")


def test_one_that_another_is_making_is_waited_for(tmp_path: Path) -> None:
    child = forked(lambda: with_mlflow_alone(tmp_path))
    while not (tmp_path / "mlflow.db").exists():
        time.sleep(0.01)
    number = (tmp_path / "mlflow.db").stat().st_ino
    assert works(tmp_path)
    assert ending(child) == 0
    assert (tmp_path / "mlflow.db").stat().st_ino == number


def test_two_first_runs_at_once_share_one(tmp_path: Path) -> None:
    children = [forked(lambda: connect_to(tmp_path)) for _ in range(2)]
    assert [ending(child) for child in children] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    assert works(tmp_path)


@pytest.mark.parametrize(
    ("tables", "half_made"),
    [
        ({}, True),
        ({"experiments": 0, "alembic_version": 1}, True),
        ({"experiments": 1, "alembic_version": 1}, False),
        ({"experiments": 0, "registered_models": 1}, False),
        ({"experiments": 0, "patients": 1}, False),
        ({"patients": 0}, False),
    ],
)
def test_whatever_holds_a_row_or_is_anothers_stays(
    tmp_path: Path, tables: dict[str, int], half_made: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "it's 100 % mine?.db"
    with closing(sqlite3.connect(path)) as database:
        for name, rows in tables.items():
            database.execute(f"CREATE TABLE {name} (name TEXT)")
            database.executemany(f"INSERT INTO {name} VALUES (?)", [("a",)] * rows)
        database.commit()
    before = path.read_bytes()
    assert is_half_made(path) is half_made
    monkeypatch.setattr("tasks.registry.database.QUIET_S", -1)
    make_database(path)
    assert (path.read_bytes() == before) is not half_made


def test_an_older_mlflows_runs_stay(store: Tracking, tmp_path: Path) -> None:
    open_run(store, "older", "older", {}, {})
    assert store.folder is not None
    shutil.copy(store.folder / "mlflow.db", tmp_path)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
        database.commit()
    before = (tmp_path / "mlflow.db").read_bytes()
    with pytest.raises(LiversegError, match=r"LS401.*out-of-date"):
        connect(None, tmp_path, "liverseg")
    assert (tmp_path / "mlflow.db").read_bytes() == before


def test_what_sqlite_left_beside_a_half_made_one_goes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal would be played back into the new one."""
    monkeypatch.setattr("tasks.registry.database.QUIET_S", -1)
    for name in ("mlflow.db", "mlflow.db-journal", "mlflow.db-wal", "mlflow.db-shm"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "mlflow.db-journal").write_bytes(b"old pages" * 100)
    assert works(tmp_path)


def test_a_users_own_file_is_made_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    connect("sqlite:///runs/mine.db", tmp_path / "store", "liverseg")
    assert not is_half_made(tmp_path / "runs" / "mine.db")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:///a/b.db", Path("a/b.db")),
        ("sqlite:////a/b c.db", Path("/a/b c.db")),
        ("sqlite:///:memory:", None),
        ("sqlite:///", None),
        ("sqlite:///file:a.db?mode=ro&uri=true", None),
        ("sqlite:///a.db?timeout=3", None),
        ("postgresql://a/b", None),
        ("http://127.0.0.1:5000", None),
    ],
)
def test_the_file_of_a_uri(uri: str, path: Path | None) -> None:
    assert sqlite_path(uri) == path
