"""The verb that keeps a model up to date with its source."""

import typer

from flows.commands.options import Config, Dask, Json, Overrides, Store, Workers, all_overrides, print_json
from flows.commands.stages import Source, name_quarantined, show_result
from flows.console import watching
from flows.settings import load_settings


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
    from flows.local_api import local_api

    every = all_overrides(overrides, workers, dask)
    load_settings(config, every, source=source, store=store)  # a wrong setting shows before anything starts
    with local_api() as api:
        from flows.retrain import retrain as flow

        if api:
            api.wait()
        with watching():
            result = flow(source=source, store=store, config=config, overrides=every)
    if as_json:
        print_json(result)
    elif result["retrained"]:
        show_result(result)
    name_quarantined(result["ingest"])
