"""What SQLite says of its file decides what a person is told."""

from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from liverseg_core.errors import LiversegError
from tasks.registry.database_errors import driver_error, unwritable
from tasks.registry.tracking import service


def refused(uri: str, *statements: str) -> OperationalError:
    """What a real database says to these statements."""
    with pytest.raises(OperationalError) as caught:
        execute(uri, *statements)
    return caught.value


def execute(uri: str, *statements: str) -> None:
    with create_engine(uri).begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "runs.db"
    execute(f"sqlite:///{path}", "CREATE TABLE runs (name TEXT)")
    return path


def test_a_database_that_may_only_be_read(database: Path) -> None:
    error = refused(f"sqlite:///file:{database}?mode=ro&uri=true", "INSERT INTO runs VALUES ('a')")
    assert unwritable(error) == "LS203"
    assert str(driver_error(error)) == "attempt to write a readonly database"


def test_a_full_disk(database: Path) -> None:
    grow = "INSERT INTO runs VALUES (zeroblob(1000000))"
    error = refused(f"sqlite:///{database}", "PRAGMA max_page_count = 10", grow)
    assert unwritable(error) == "LS701"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert unwritable(refused(f"sqlite:///{tmp_path}/none/runs.db", "SELECT 1")) == "LS203"


def test_other_errors_are_the_servers(database: Path) -> None:
    error = refused(f"sqlite:///{database}", "SELECT * FROM nowhere")
    assert unwritable(error) is None
    assert unwritable(MlflowException("API request failed with exception")) is None


def test_mlflows_words_are_looked_through(database: Path) -> None:
    below = refused(f"sqlite:///file:{database}?mode=ro&uri=true", "INSERT INTO runs VALUES ('a')")
    with pytest.raises(LiversegError) as caught, service("sqlite:///runs.db"):
        raise MlflowException("raised as a result of autoflush") from below
    assert caught.value.code == "LS203"
    assert "cannot write to sqlite:///runs.db: attempt to write a readonly database" in str(caught.value)
