"""What code made something: its commit, and the versions of the libraries that matter."""

import functools
import os
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path


def library_versions(names: Sequence[str]) -> dict[str, str]:
    """Installed versions without the local part, so that a CPU and a GPU build share their artifacts."""
    return {name: _version(name) for name in names}


@functools.cache
def git_commit() -> str | None:
    """The commit of the code that runs, with `+dirty`; outside a checkout what an image says, or None."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty=+dirty",
        "--abbrev=40",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("LIVERSEG_GIT_COMMIT") or None
    return done.stdout.strip()


@functools.cache
def _version(name: str) -> str:
    return version(name).partition("+")[0]
