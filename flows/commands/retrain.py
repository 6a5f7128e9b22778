"""The verb that keeps a model up to date with its source."""

import typer

from flows.commands.options import Config, Dask, Json, Overrides, Store, Workers, all_overrides, print_json
from flows.commands.stages import Source, name_quarantined, run_flow, show_result


def add_to(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(retrain)


def retrain(
    source: Source = None,
    config: Config = None,
    store: Store = None,
    overrides: Overrides = None,
    workers: Workers = None,
    dask: Dask = None,
    as_json: Json = False,
) -> None:
    """Train again from the champion where data is new, and keep the better model; else do nothing."""
    every = all_overrides(overrides, workers, dask)
    result = run_flow("flows.retrain:retrain", source, store, config, every)
    if as_json:
        print_json(result)
    elif result["retrained"]:
        show_result(result)
    name_quarantined(result["ingest"])
