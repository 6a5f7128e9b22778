"""liverseg: everything about CT, Zarr, torch and measures; knows no orchestrator."""

__version__ = "0.1.0"
