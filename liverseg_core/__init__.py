"""liverseg: everything about CT, Zarr, torch and measures; knows no orchestrator."""

import os

# MONAI imports mlflow where it is installed, and mlflow then reports usage to its makers. Not from here.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

__version__ = "0.1.0"
