"""Verbs that judge models: score, and what the registry holds."""

import functools
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.options import Config, Json, Store, print_json
from flows.commands.score_tables import case_scores, lesion_table, surface_table
from flows.console import DATA, dice_table, plain_table, watching

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
    """Score labels against labels: overlap, surfaces in mm, lesions found, volumes, tumour burden."""
    from liverseg_core.evaluation.score import score as score_paths

    with watching() as report:
        result = score_paths(prediction, reference, functools.partial(report.progress, "score"))
    if as_json:
        print_json(result)
        return
    summary = result["summary"]
    tables = case_scores(result["cases"]), dice_table(summary), surface_table(summary), lesion_table(summary)
    for table in tables:
        DATA.print(table)


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
