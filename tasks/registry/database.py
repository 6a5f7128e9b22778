"""MLflow's own SQLite file: whole, or not there.

MLflow makes it in hundreds of steps, each synced to the disk, and a kill in between leaves one that it
neither uses nor mends. So it is made in memory and written as one file.
"""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from liverseg_core.durable import lock, writable, write_atomically
from liverseg_core.environment import environment
from liverseg_core.errors import LiversegError
from tasks.registry.files import ARTIFACTS

WAIT_S, PAUSE_S = 120.0, 0.1
"""For another run that is making it just now."""
QUIET_S = 5.0
"""What was written to more recently, an older liverseg or a server may be making."""
ROWS_OF_ITS_OWN = {"alembic_version", "workspaces"}
"""Tables that MLflow writes to while it makes the others."""
BESIDE = ("-journal", "-wal", "-shm")
"""SQLite's own files beside a database."""


def make_database(path: Path) -> None:
    """Make MLflow's database where there is none, or one that a kill left half-made, with nothing in it.

    Raises:
        LiversegError: LS203 or LS701 when it can't be written; LS601 when another run takes too long to.
        MlflowException, SQLAlchemyError: MLflow can't make it.
    """
    if not _is_wanted(path):
        return
    with writable(path.parent), _waiting_lock(path.with_name(f"{path.name}.lock")):
        if not _is_wanted(path):
            return
        data = _empty_database(path.absolute().parent / ARTIFACTS)
        path.unlink(missing_ok=True)  # before what is beside it: alone, that is of no database
        for ending in BESIDE:
            path.with_name(path.name + ending).unlink(missing_ok=True)
        write_atomically(path, data)


def _is_wanted(path: Path) -> bool:
    """Whether there is no database, or a half-made one that nobody is at."""
    with contextlib.suppress(FileNotFoundError):
        while True:
            written = path.stat().st_mtime
            if not is_half_made(path):
                return False
            if time.time() - written > QUIET_S:
                return True
            time.sleep(PAUSE_S)
    return True


def is_half_made(path: Path) -> bool:
    """Whether this is an empty file, or a database of MLflow's without the experiment that it makes last.

    Whatever holds a single row, is another program's or can't be read is not.

    Raises:
        FileNotFoundError: There is none.
    """
    if path.stat().st_size == 0:
        return True
    try:  # for writing, since what a kill interrupted is rolled back first
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True)) as database:
            database.execute("BEGIN")  # what is read is of one moment
            tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            names = {name for (name,) in tables}
            held = any(_has_rows(database, name) for name in names - ROWS_OF_ITS_OWN)
            return not held and (not names or "experiments" in names)
    except sqlite3.Error:
        return False


def _has_rows(database: sqlite3.Connection, table: str) -> bool:
    return database.execute(f'SELECT 1 FROM "{table}" LIMIT 1').fetchone() is not None


def _empty_database(artifacts: Path) -> bytes:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with environment({"MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "StaticPool"}):  # one connection, one memory
        store = SqlAlchemyStore("sqlite://", artifacts.as_uri())  # it puts a path into SQL as it is
    try:
        with contextlib.closing(store.engine.raw_connection()) as connection:
            data: bytes = connection.driver_connection.serialize()
    finally:
        store.engine.dispose()  # the next one begins with nothing
    return data


@contextlib.contextmanager
def _waiting_lock(path: Path) -> Iterator[None]:
    deadline = time.monotonic() + WAIT_S
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(lock(path))
                break
            except LiversegError as error:
                if error.code != "LS601" or time.monotonic() > deadline:
                    raise
            time.sleep(PAUSE_S)
        yield
