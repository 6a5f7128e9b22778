"""What a database's driver said, under the words that SQLAlchemy and MLflow put around it."""

import sqlite3

from sqlalchemy.exc import DBAPIError

_CODES = {"READONLY": "LS203", "CANTOPEN": "LS203", "PERM": "LS203", "FULL": "LS701"}
"""By SQLite's name of the error: the store can't be written, or its disk is full."""


def driver_error(error: BaseException) -> BaseException | None:
    """The driver's own error, where it is the reason of this one."""
    around = error if isinstance(error, DBAPIError) else error.__cause__
    return around.orig if isinstance(around, DBAPIError) else None


def unwritable(error: BaseException) -> str | None:
    """The code for an error because SQLite can't write its file; None for any other."""
    found = driver_error(error)
    if not isinstance(found, sqlite3.OperationalError):
        return None
    return _CODES.get(found.sqlite_errorname.split("_")[1])
