"""Environment variables for a while, and the folders they name."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables, and leave the environment as it was, whatever was done to it meanwhile."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def user_cache() -> Path:
    """This user's folder for what can be made anew: `LIVERSEG_CACHE`, else as the desktop convention has it.

    Raises:
        RuntimeError: For a user without a home.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "liverseg"
    return Path(os.environ.get("LIVERSEG_CACHE") or base)
