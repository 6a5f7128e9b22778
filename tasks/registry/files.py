"""What MLflow keeps in a store: a database, and artifacts in a folder beside it.

Imports nothing of `liverseg_core`, as `moved.py` does not: a process of MLflow's that loads a model with its
own must not have another one already.
"""

import sqlite3
from pathlib import Path
from urllib.parse import quote, unquote

DATABASE, ARTIFACTS = "mlflow.db", "mlflow-artifacts"
QUOTED = "sqlite+pysqlite:///file:"


def sqlite_uri(path: Path) -> str:
    """The URI by which MLflow opens a file; `sqlite_path` gives it back."""
    if "?" not in str(path):
        return f"sqlite:///{path}"
    # In a plain one the path would end there; this one SQLite itself takes apart. Only of a plain one does
    # MLflow make the folder, which of this would be called "file:".
    return f"{QUOTED}{quote(str(path))}?uri=true"


def sqlite_path(uri: str) -> Path | None:
    """The file of a plain SQLite URI, or of one that `sqlite_uri` made; None for any other."""
    from sqlalchemy.engine import make_url  # takes a fifth of a second, which a look at `DATABASE` is spared

    if uri.startswith(QUOTED):
        return Path(unquote(uri.removeprefix(QUOTED).removesuffix("?uri=true")))
    if not uri.startswith("sqlite:///"):
        return None
    url = make_url(uri)
    name = url.database or ":memory:"
    return None if url.query or name.startswith((":memory:", "file:")) else Path(name)


def read_only(path: Path) -> sqlite3.Connection:
    """Open a database that is there, to look into it."""
    return sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
