"""liverseg: everything about CT, Zarr, torch and measures; knows no orchestrator."""

import os

from liverseg_core.surroundings import settle

settle()

# mlflow reports usage to its makers unless it is told not to before it is imported. Not from here.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

# A thread that spins while it waits for another takes that other's core: on a busy machine training with two
# threads was five times slower than with one. Passive waiting costs nothing measurable on a quiet one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
