"""Verbs that run stages: one of them, or the whole flow."""

from dataclasses import asdict
from pkgutil import resolve_name
from typing import Annotated, Any

import typer

from flows.commands.case_table import case_table, say_flags
from flows.commands.options import (
    Config,
    Dask,
    Folds,
    Json,
    Overrides,
    Store,
    Workers,
    all_overrides,
    print_json,
)
from flows.console import DATA, dice_table, plain_table, say, watching
from flows.settings import load_settings
from liverseg_core.config import Settings
from liverseg_core.errors import ExitCode

Source = Annotated[
    str | None, typer.Argument(metavar="SOURCE", help="A Decathlon tar or folder; a path or URL.")
]
Record = dict[str, Any]


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    for verb in (ingest, run, train, evaluate, register):
        app.command()(verb)


def run(
    source: Source = None,
    config: Config = None,
    store: Store = None,
    overrides: Overrides = None,
    workers: Workers = None,
    dask: Dask = None,
    fold: Folds = None,
    as_json: Json = False,
) -> None:
    """The whole flow, in this process: ingest, split, train, evaluate, register, report."""
    every = all_overrides(overrides, workers, dask, fold)
    result = _found(source, store, config, every)
    result = result or run_flow("flows.pipeline:ingest_train_evaluate", source, store, config, every)
    if as_json:
        print_json(result)
    else:
        show_result(result)
    name_quarantined(result["ingest"])


def ingest(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A Decathlon tar or folder; a path or URL.")
    ],
    config: Config = None,
    store: Store = None,
    overrides: Overrides = None,
    workers: Workers = None,
    dask: Dask = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N cases.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
    as_json: Json = False,
) -> None:
    """Resample every case of a dataset into the store; what is stored already is left alone."""
    from flows.context import open_context
    from tasks import ingest as stage

    settings = load_settings(config, all_overrides(overrides, workers, dask), source=source, store=store)
    with watching():
        context = open_context(settings)
        if dry_run:
            planned = stage.plan(context, limit)
            rows = [(case.case, "stored" if found else "new") for case, found in planned.items()]
            if as_json:
                print_json([{"case": case, "state": state} for case, state in rows])
            else:
                DATA.print(plain_table(("case", "state"), rows))
            return
        result = stage.ingest(context, limit)
        described = stage.data_report(context, result)
    if as_json:
        print_json({**result, "report": [asdict(row) for row in described]})
    else:
        DATA.print(case_table(described))
        say_flags(described)
    name_quarantined(result)


def train(
    config: Config = None,
    store: Store = None,
    overrides: Overrides = None,
    fold: Folds = None,
    as_json: Json = False,
) -> None:
    """Bring the model up to date with the stored cases."""
    settings = load_settings(config, all_overrides(overrides, fold=fold), store=store)
    record = bring_up_to_date(settings, "train")
    if as_json:
        print_json(record)


def evaluate(
    config: Config = None,
    store: Store = None,
    overrides: Overrides = None,
    fold: Folds = None,
    as_json: Json = False,
) -> None:
    """Bring the evaluation of the model on the validation cases up to date."""
    settings = load_settings(config, all_overrides(overrides, fold=fold), store=store)
    evaluation = bring_up_to_date(settings, "evaluate")
    if as_json:
        print_json(evaluation)
    else:
        DATA.print(dice_table(evaluation["summary"]))
        for case in evaluation["cases"]:
            if case["flags"]:
                say(f"{case['case']}: {', '.join(case['flags'])}")


def register(
    config: Config = None,
    store: Store = None,
    overrides: Overrides = None,
    fold: Folds = None,
    as_json: Json = False,
) -> None:
    """Bring the registered version of the evaluated model up to date."""
    settings = load_settings(config, all_overrides(overrides, fold=fold), store=store)
    record = bring_up_to_date(settings, "register")
    if as_json:
        print_json(record)


def _found(source: str | None, store: str | None, config: str | None, overrides: list[str]) -> Record | None:
    """What a run would find where all of it was done before."""
    from flows.rerun import find_everything

    with watching():
        return find_everything(load_settings(config, overrides, source=source, store=store))


def bring_up_to_date(settings: Settings, last: str) -> Record:
    """Run the stages up to `last` on the stored cases, without Prefect; what is done already is found.

    Returns:
        What `last` returned; of several folds' models, the last one's.
    """
    from flows.context import open_context
    from flows.order import PLAIN, follow

    with watching():
        return follow(open_context(settings), PLAIN.until(last))[last]


def run_flow(
    flow: str, source: str | None, store: str | None, config: str | None, overrides: list[str]
) -> Record:
    """Run a flow, named `module:function`, in this process; it is imported while the temporary API starts."""
    from flows.local_api import local_api

    # A wrong setting shows before anything starts.
    load_settings(config, overrides, source=source, store=store)
    with local_api() as api:
        run = resolve_name(flow)
        if api:
            api.wait()
        with watching():
            result: Record = run(source=source, store=store, config=config, overrides=overrides)
    return result


def show_result(result: Record) -> None:
    """Print what a run came to."""
    version, evaluation = result["register"], result["evaluate"]
    DATA.print(dice_table(evaluation["summary"]))
    aliases = f" ({', '.join(version['aliases'])})" if version["aliases"] else ""
    say(f"Registered {version['name']} version {version['version']}{aliases}: {version['reason']}")
    say(f"Pictures   {evaluation['path']}/pictures")
    say(f"Report     {result['report']['page']}")


def name_quarantined(cases: Record) -> None:
    """Name the cases that could not be used, and end with the exit code that says so."""
    for entry in cases["quarantined"]:
        say(f"Quarantined {entry['case']}: {entry['reason']}")
    if cases["quarantined"]:
        raise typer.Exit(ExitCode.PARTIAL)
