"""The results of benchmarks/ingest.py as tables."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
STEPS = ("planes", "resample", "fingerprint", "compress and write", "digests and commit")
COLUMNS = {
    "floor": (
        *(
            "case",
            "stored_shape",
            "bytes_read",
            "bytes_written",
            "inflate_cpu_s",
            "ingest_cpu_s",
            "ingest_wall_s",
        ),
        *("cpu_ratio", "above_baseline_mb", *(f"profile_cpu_s.{step}" for step in STEPS)),
    ),
    "peers": ("peer", "case", "cpu_s", "cpu_ratio", "wall_s", "peak_mb", "bytes_written", "phases_cpu_s"),
    "workers": (
        *("source", "workers", "wall_s", "cases_per_min", "read_mb_per_s", "cpu_s_per_case", "speedup"),
        *("efficiency_per_core", "cpu_efficiency", "bytes_written", "server_cpu_s"),
    ),
    "error": ("grid", "tool", "rmse_exact", "max_exact", "rmse_int16", "max_int16"),
    "estimate": ("tool", "cores", "wall_s", "decided_by"),
}


def show(results: Row, parts: Iterable[str]) -> None:
    """Print the parts, each as a table and what it comes to."""
    console = Console(width=None if Console().is_terminal else 180)
    for part in parts:
        found = results[part]
        rows = found.get("cases") or found["rows"]
        title = f"{part}, load {found['load']} on {found['machine']['cores']} cores"
        table = Table(title=title, title_justify="left")
        for column in COLUMNS[part]:
            text = isinstance(_value(rows[0], column), str)
            table.add_column(_heading(column), justify="left" if text else "right")
        for row in rows:
            table.add_row(*(_cell(column, _value(row, column)) for column in COLUMNS[part]))
        console.print(table)
        for line in _said(found):
            console.print(line, highlight=False, soft_wrap=True)


def _heading(column: str) -> str:
    return column.rpartition(".")[2].replace("_", " ")


def _value(row: Row, column: str) -> Any:
    key, _, inner = column.partition(".")
    return row[key][inner] if inner else row.get(key)


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "–"
    if column.startswith("bytes"):
        return f"{value / 1e6:.1f} MB"
    if isinstance(value, dict):
        return ", ".join(f"{name} {seconds:.2f}" for name, seconds in value.items())
    return "×".join(map(str, value)) if isinstance(value, list) else str(value)


def _said(found: Row) -> list[str]:
    """What else a part found: its goal, its medians, the arithmetic, what could not be measured."""
    rest = {
        key: value
        for key, value in found.items()
        if key not in ("cases", "rows", "machine", "load", "versions")
    }
    return [
        f"{key}: {entry}"
        for key, value in rest.items()
        for entry in (value if isinstance(value, list | tuple) else [value])
    ]
