"""An environment of its own for each peer, as its requirements file in peers/ pins it; made once, kept."""

import os
import subprocess
import sys
from pathlib import Path

PEERS = Path(__file__).with_name("peers")
CONSTRAINTS = Path(__file__).parents[1] / "constraints-cpu.txt"
"""Pins what the requirements leave open, to what we run on ourselves."""
THREADS = ("OMP", "MKL", "OPENBLAS", "NUMBA", "BLOSC")
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in THREADS} | {
    "BLOSC_NTHREADS": "1",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
    "nnUNet_def_n_proc": "1",
}


def python_of(peer: str, folder: Path) -> Path:
    """The interpreter of a peer's environment, which is made where it isn't there or was pinned otherwise.

    Raises:
        subprocess.CalledProcessError: When it can't be installed; `stderr` says why.
    """
    home, requirements = folder / peer, PEERS / f"{peer}.txt"
    python, mark = home / "bin" / "python", home / "installed.txt"
    wanted = requirements.read_text() + CONSTRAINTS.read_text()
    if not mark.exists() or mark.read_text() != wanted:
        print(f"installing {peer} into {home}", file=sys.stderr)
        _run([sys.executable, "-m", "venv", "--clear", str(home)])
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "--constraint", str(CONSTRAINTS), "--requirement", str(requirements)])
        mark.write_text(wanted)
    return python


def run_in(python: Path, script: str, arguments: list[str], folder: Path) -> str:
    """What one of the scripts in peers/ prints last, run with one thread in a folder of its own.

    Raises:
        subprocess.CalledProcessError: When it fails; `stderr` says why.
    """
    printed = _run([str(python), str(PEERS / script), *arguments], folder)
    return printed.strip().rpartition("\n")[2]


def _run(command: list[str], folder: Path | None = None) -> str:
    environment = os.environ | ONE_THREAD
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout
