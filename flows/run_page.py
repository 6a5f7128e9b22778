"""What a flow run shows on its page in Prefect: the measures, what became of the model, and the report.

The stores hold all of it: a Prefect server that does not answer costs its page, never the run.
"""

from dataclasses import replace
from pathlib import Path

from flows.console import DICE_COLUMNS, dice_rows
from flows.order import Stages
from flows.run_report import not_insisting
from liverseg_core.words import counted
from tasks.context import Context, Record
from tasks.ensemble import Fold
from tasks.registry.report_reference import PAGE


def run_name() -> str:
    """Name a run by its data and its recipe, as the parameters have them."""
    from prefect import runtime

    given = runtime.flow_run.parameters
    names = [
        str(given[name]).partition("?")[0].rstrip("/") for name in ("source", "config") if given.get(name)
    ]
    return ", ".join(name.rpartition("/")[2] for name in names) or "stored cases"


def showing(do: Stages) -> Stages:
    """The same stages, which show what became of the model, and where its report is, once that is known."""

    def register(context: Context, dataset: Record, model: Record, evaluation: Record) -> Record:
        version = do.register(context, dataset, model, evaluation)
        show_model(Fold(dataset, model, evaluation), version)
        return version

    def report(context: Context, cases: Record, made: Fold, version: Record) -> Record:
        page = do.report(context, cases, made, version)
        show_report(page)
        return page

    return replace(do, register=register, report=report)


def show_model(made: Fold, version: Record) -> None:
    """The Dice table and a summary, under keys that stay the same from run to run."""
    from prefect.artifacts import create_markdown_artifact, create_table_artifact

    summary, name = made.evaluation["summary"], f"{version['name']} version {version['version']}"
    rows = [dict(zip(("class", *DICE_COLUMNS), row, strict=True)) for row in dice_rows(summary)]
    about = f"Native-space Dice of {name}, {counted(summary['cases'], 'validation case')}"
    aliases = ", ".join(version["aliases"]) or "none"
    keys = {"data": made.dataset["key"], "model": made.model["key"], "evaluation": made.evaluation["key"]}
    lines = [f"# {name}", "", version["reason"], "", f"- aliases: {aliases}"]
    lines += [f"- dataset: {made.dataset['dataset']}", *(f"- {what}: `{key}`" for what, key in keys.items())]
    lines += ["", "Research software, not a medical device."]
    with not_insisting():
        create_table_artifact(rows, key="liverseg-dice", description=about)
        create_markdown_artifact("\n".join(lines), key="liverseg-model", description=f"What became of {name}")


def show_report(report: Record) -> None:
    """A link to the report: in MLflow where that has pages, else where the store keeps it."""
    from prefect.artifacts import create_link_artifact

    run, page = report["links"].get("MLflow run"), report["page"]
    link = f"{run}/artifacts/report/{PAGE}" if run else page if "://" in page else Path(page).as_uri()
    with not_insisting():
        create_link_artifact(link, f"Report of {report['title']}", key="liverseg-report", description=page)
