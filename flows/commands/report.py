"""`liverseg report`: where the page of a model is, and the page itself."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.options import Config, Folds, Json, Overrides, Store, all_overrides, print_json
from flows.console import DATA, say
from flows.settings import load_settings
from liverseg_core.artifacts.artifact import load, verify
from liverseg_core.artifacts.location import open_store
from liverseg_core.artifacts.stages import REPORT
from liverseg_core.config import Settings


def add_to(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(report)


def report(
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="KEY",
            help="Of a report, an evaluation or a model, or its beginning; or models:/NAME@ALIAS. "
            "Without it the report of the configured model is brought up to date.",
        ),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    config: Config = None,
    store: Store = None,
    overrides: Overrides = None,
    fold: Folds = None,
    as_json: Json = False,
) -> None:
    """Print where the report of a model is; from a bucket it is copied to this machine."""
    from tasks.registry.report_reference import CARD, PAGE

    settings = load_settings(config, all_overrides(overrides, fold=fold), store=store)
    folder = _fetch(settings, key)
    artifact = load(folder)
    assert artifact is not None
    verify(artifact)
    page, card = (str(folder / name) for name in (PAGE, CARD))
    if as_json:
        print_json({"key": artifact.key, "page": page, "model_card": card, **artifact.facts})
    else:
        DATA.print(page, soft_wrap=True, markup=False)
    if open_page and not webbrowser.open(Path(page).as_uri()):
        say("No browser could be started here: open the page by its path")


def _fetch(settings: Settings, key: str | None) -> Path:
    """The report's folder on this machine."""
    if key is None:
        from flows.commands.stages import bring_up_to_date

        key = bring_up_to_date(settings, "report")["key"]
    else:
        from tasks.registry.report_reference import resolve_report

        key = resolve_report(settings, key).key
    return open_store(settings.store, settings.storage).fetch(REPORT, key)
