"""Verbs that judge models: score, and what the registry holds."""

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.options import Config, Json, Store, print_json
from flows.console import DATA, dice_table, plain_table

registry = typer.Typer(no_args_is_help=True, help="What the model registry holds.")


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    app.command()(score)
    registry.command("list")(list_models)
    app.add_typer(registry, name="models")


def score(
    prediction: Annotated[Path, typer.Argument(metavar="PRED", help="A label file, or a folder of them.")],
    reference: Annotated[Path, typer.Argument(metavar="REF", help="The labels to compare with.")],
    as_json: Json = False,
) -> None:
    """Score labels against labels: Dice under three policies, volume errors, volumes."""
    from liverseg_core.score import score as score_paths

    result = score_paths(prediction, reference)
    if as_json:
        print_json(result)
        return
    headings = ("case", "liver", "liver_only", "tumour")
    rows = [
        [case["case"], *(_dice(case[group]["dice"]) for group in headings[1:])] for case in result["cases"]
    ]
    DATA.print(plain_table(headings, rows))
    DATA.print(dice_table(result["summary"]))


def list_models(config: Config = None, store: Store = None, as_json: Json = False) -> None:
    """List the registered versions, newest first."""
    from dataclasses import asdict

    from flows.settings import load_settings
    from tasks.model_reference import is_tracked
    from tasks.registry import list_versions
    from tasks.tracking import connect

    settings = load_settings(config, store=store)
    register = settings.register_
    versions = []
    if is_tracked(settings):
        tracking = connect(register.tracking_uri, settings.store, register.experiment)
        versions = list_versions(tracking, register.model)
    if as_json:
        print_json([asdict(version) for version in versions])
        return
    headings = ("version", "aliases", "liver", "tumour", "data", "model")
    tags = ("dice.liver", "dice.tumour", "data_key", "model_key")
    rows = [
        [one.version, " ".join(one.aliases), *(one.tags.get(f"liverseg.{tag}", "–")[:12] for tag in tags)]
        for one in versions
    ]
    DATA.print(plain_table(headings, rows))


def _dice(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
