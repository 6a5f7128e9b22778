"""Options that several verbs share."""

import json
from typing import Annotated, Any

import typer

from flows.console import DATA

Config = Annotated[str | None, typer.Option(help="A YAML file, or the name of a recipe such as phantom.")]
Store = Annotated[str | None, typer.Option(help="Folder where artifacts live.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting.")
]
Workers = Annotated[int | None, typer.Option(min=0, help="Dask workers; 0: none. Default: one per core.")]
Dask = Annotated[str | None, typer.Option(metavar="ADDRESS", help="A running Dask scheduler.")]
Folds = Annotated[
    str | None, typer.Option("--fold", metavar="K|all", help="Cross-validation: fold K, or all.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def all_overrides(
    overrides: list[str] | None,
    workers: int | None = None,
    dask: str | None = None,
    fold: str | None = None,
) -> list[str]:
    """`--set` values, with the flags that stand for one."""
    flags = {"compute.workers": workers, "compute.dask": dask, "split.fold": fold}
    return [*(overrides or []), *(f"{key}={value}" for key, value in flags.items() if value is not None)]


def print_json(value: Any) -> None:
    """Print data for programs; what is not a number is null."""
    DATA.print(json.dumps(value, indent=1, allow_nan=False), soft_wrap=True, markup=False)
