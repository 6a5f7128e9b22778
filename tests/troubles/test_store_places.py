"""A store is one folder: it may be moved, copied and mounted, and have any name."""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from stages import conftest as registrations

from liverseg_core.config import RegisterConfig
from liverseg_core.errors import LiversegError
from tasks.registry.champion import promote
from tasks.registry.files import sqlite_path, sqlite_uri
from tasks.registry.moved import find_moved
from tasks.registry.promotion import Measured, Seen
from tasks.registry.publish import EXAMPLE, Registration, register
from tasks.registry.tracking import connect, log_report, open_run
from tasks.registry.version_scores import add_scores
from tasks.registry.versions import fetch_model, find_version, list_versions

model, registration = registrations.model, registrations.registration
ROWS = {
    "1.12": (
        "a store moved, copied, linked or mounted elsewhere",
        "everything works there and reaches into no other folder; original and copy stay usable",
    ),
    "1.13": (
        "a store path with ?, %20, #, spaces, quotes, brackets, umlauts",
        "database and artifacts inside the store, and everything works",
    ),
}
CHAMPION = "models:/liverseg@champion"
NAMES = (
    "a?b",
    "a%20b",
    "50%",
    "%s%d%",
    "a#b&c=d;e",
    "a b",
    'it\'s "quoted"',
    "Löwe ü",
    "[a]{b}*$HOME",
    "a:b@c",
)


@pytest.fixture(scope="module")
def first_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("first") / "".join(NAMES[1:])


@pytest.fixture
def store(
    first_place: Path,
    registration: Callable[..., Registration],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Path]:
    """A store with a registered version, made in a folder of a very odd name: the tests copy it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (here := tmp_path / "here").mkdir()
    monkeypatch.chdir(here)
    if not first_place.exists():
        tracking = connect(None, first_place, "liverseg")
        register(tracking, registration(tracking, config=RegisterConfig(model="liverseg")))
    yield first_place
    mlflow.set_tracking_uri(None)
    assert not list(here.iterdir()), "nothing where the command was typed"
    assert [path.name for path in first_place.parent.iterdir()] == [first_place.name]


def below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def works(store: Path, fetched: Path) -> None:
    """What verbs ask of a registry: look, fetch, load as MLflow does, promote, add to old and new runs."""
    tracking = connect(None, store, "liverseg")
    assert tracking.folder == store.resolve()
    (version, *_) = list_versions(tracking, "liverseg")
    assert find_version(tracking, CHAMPION).version
    assert (fetch_model(CHAMPION, fetched) / "model.safetensors").exists()
    label = mlflow.pyfunc.load_model(CHAMPION).predict(EXAMPLE)
    assert label.shape == np.shape(EXAMPLE["image"])
    promote(tracking, f"models:/liverseg/{version.version}", RegisterConfig(), force=True)
    (page := fetched / "report").mkdir()
    (page / "report.html").write_text("a page")
    log_report(tracking, version.run_id, page)
    add_scores(tracking, CHAMPION, Measured.of(Seen("other validation cases", {}, []), []))
    MlflowClient().log_text(open_run(tracking, "new", "new", {}, {}), "text", "note.txt")
    new = [path.name for path in store.glob("mlflow-artifacts/*/artifacts/**/*") if path.is_file()]
    assert {"report.html", "note.txt", "metrics.json"} <= set(new)


@pytest.mark.trouble("1.12")
def test_original_and_copy_each_keep_to_themselves(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, copy = tmp_path / "original", tmp_path / "elsewhere" / "copy"
    for place in (original, copy):
        shutil.copytree(store, place)
    (weights,) = original.glob("mlflow-artifacts/models/*/artifacts/artifacts/model.safetensors")
    intact = weights.read_bytes()
    weights.write_bytes(b"damaged")
    connect(None, original, "liverseg")
    with pytest.raises(LiversegError, match="LS503"):
        fetch_model(CHAMPION, tmp_path / "fetched")
    before = below(original)
    works(copy, tmp_path / "fetched-1")
    assert below(original) == before, "nothing of the original was touched"
    weights.write_bytes(intact)
    connect(None, original, "liverseg")
    assert fetch_model(CHAMPION, tmp_path / "fetched").is_dir()
    shutil.rmtree(original)
    third = Path(shutil.move(copy, tmp_path / "third"))
    connect(None, third, "liverseg")
    assert fetch_model(CHAMPION, tmp_path / "fetched-3").is_dir()
    # As MLflow alone is told where a store is, by its own variable.
    mlflow.set_tracking_uri(None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{third / 'mlflow.db'}")
    assert mlflow.pyfunc.load_model(CHAMPION).predict(EXAMPLE).dtype == np.uint8
    assert not original.exists()
    assert not copy.exists()


@pytest.mark.trouble("1.12")
def test_a_link_to_a_store_is_the_store(store: Path, tmp_path: Path) -> None:
    (link := tmp_path / "link").symlink_to(store)
    tracking = connect(None, link, "liverseg")
    assert tracking.folder == store
    assert fetch_model(CHAMPION, tmp_path / "fetched").is_dir()


@pytest.mark.trouble("1.12")
def test_only_what_the_database_names_is_found_elsewhere(tmp_path: Path) -> None:
    """Paths of others, and other databases, are left as they are."""
    (store := tmp_path / "store").mkdir()
    (tmp_path / "other").mkdir()
    for path in (store / "mlflow.db", tmp_path / "other" / "own.db"):
        with closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE experiments (artifact_location TEXT)")
            database.execute("INSERT INTO experiments VALUES ('file:///was/here/mlflow-artifacts')")
            database.commit()
    find_moved()

    def found(uri: str) -> str:
        return str(get_artifact_repository(uri).artifact_dir)

    mlflow.set_tracking_uri(sqlite_uri(store / "mlflow.db"))
    here = str(store / "mlflow-artifacts")
    assert found("file:///was/here/mlflow-artifacts/r%25/artifacts") == f"{here}/r%/artifacts"
    assert found("file:///was/here/mlflow-artifacts") == here
    for own in ("/was/here/mlflow-artifacts-2/r", "/was/here", "/elsewhere/mlflow-artifacts/r"):
        assert found(f"file://{own}") == own
    mlflow.set_tracking_uri(sqlite_uri(tmp_path / "other" / "own.db"))
    assert found("file:///was/here/mlflow-artifacts/r") == "/was/here/mlflow-artifacts/r"
    mlflow.set_tracking_uri("http://127.0.0.1:1")
    assert found("file:///was/here/mlflow-artifacts/r") == "/was/here/mlflow-artifacts/r"
    mlflow.set_tracking_uri(None)


@pytest.mark.trouble("1.12")
def test_what_mlflow_loads_of_ours_is_no_other_liverseg() -> None:
    """A model that brings its own would get this one."""
    code = "import sys, tasks.registry.moved; print([name for name in sys.modules if 'liverseg' in name])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.trouble("1.13")
@pytest.mark.parametrize("name", NAMES)
def test_a_database_has_one_uri(name: str) -> None:
    path = Path("/in", name, "mlflow.db")
    assert sqlite_path(sqlite_uri(path)) == path


@pytest.mark.trouble("1.13")
@pytest.mark.parametrize("name", NAMES[:2])
def test_a_store_of_an_odd_name(store: Path, name: str, tmp_path: Path) -> None:
    """Made under all the other odd names at once, it works also under this one."""
    assert sorted(path.name for path in store.iterdir()) == [
        ".register.lock",
        "mlflow-artifacts",
        "mlflow.db",
    ]
    works(Path(shutil.copytree(store, tmp_path / "in" / name)), tmp_path / "fetched")
    assert [path.name for path in (tmp_path / "in").iterdir()] == [name]


@pytest.mark.trouble("1.13")
def test_a_database_is_made_behind_a_question_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    connect(None, Path("in", NAMES[0]), "liverseg")
    mlflow.set_tracking_uri(None)
    assert [str(path) for path in Path().rglob("*")] == ["in", "in/a?b", "in/a?b/mlflow.db"]
