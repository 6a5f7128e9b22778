"""Retraining that may run on a schedule: only where data is new, from the champion on, and to the better."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from prefect import flow

from flows.console import say
from flows.context import open_context
from flows.run_page import run_name, show_model, show_report
from flows.settings import load_settings
from flows.training import train_there_or_here
from liverseg_core.errors import LiversegError
from tasks.context import Context, Record
from tasks.ensemble import Fold
from tasks.evaluate import evaluate_task
from tasks.ingest import ingest_task
from tasks.register import register_task
from tasks.registry.place import require_tracking
from tasks.report import report_task
from tasks.split import split_task
from tasks.standing import measure_champion, standing

if TYPE_CHECKING:
    from tasks.registry.versions import VersionRecord


@flow(name="retrain", flow_run_name=run_name, persist_result=False, validate_parameters=True)
def retrain(
    source: str | None = None,
    store: str | None = None,
    config: str | None = None,
    overrides: list[str] | None = None,
) -> Record:
    """Train again where cases came, changed or were withdrawn since the last version, else do nothing.

    Training begins with the champion's weights; the new model and the champion are compared on the same
    validation cases, and the better one is champion.

    Args:
        source: A Decathlon tar or folder that data keeps coming to.
        store: Where artifacts live.
        config: A YAML file, or the name of a recipe.
        overrides: `key=value`, as after `--set`.

    Returns:
        `retrained`, `version`, `difference` (names of `new`, `changed`, `withdrawn` cases) and one record a
        stage, by its name.

    Raises:
        LiversegError: LS215 for `split.fold: all`; those of the stages.
    """
    context = open_context(load_settings(config, overrides or (), source=source, store=store))
    settings = context.settings
    require_tracking(settings.register_.tracking_uri, settings.store)
    if settings.split.fold == "all":
        remedy = "Leave split.fold out, or train the folds with `liverseg run`"
        raise LiversegError("LS215", "retrain can't train folds", "one split", remedy)
    cases = ingest_task(context)
    dataset = split_task(context, cases)
    known = standing(context, dataset)
    told = {"difference": known.difference, "ingest": cases, "split": dataset}
    if known.trained:
        say(f"nothing new: version {known.trained.version} was trained on these data")
        return {"retrained": False, "version": known.trained.version, **told}
    say(_told(known.difference))
    if known.champion:
        measure_champion(context, dataset, known.champion)
        context = _from_champion(context, known.champion)
    model = train_there_or_here(context, dataset)
    evaluation = evaluate_task(context, dataset, model)
    version = register_task(context, dataset, model, evaluation)
    made = Fold(dataset, model, evaluation)
    show_model(made, version)
    page = report_task(context, cases, made, version)
    show_report(page)
    stages = {"train": model, "evaluate": evaluation, "register": version, "report": page}
    return {"retrained": True, "version": version["version"], **told, **stages}


def _from_champion(context: Context, champion: "VersionRecord") -> Context:
    """The context for a training that goes on from the champion, where that is wanted."""
    settings = context.settings
    if not settings.retrain.warm_start:
        return context
    steps = settings.retrain.steps or settings.train.steps
    start = f"models:/{champion.name}/{champion.version}"
    train = settings.train.model_copy(update={"start_from": start, "steps": steps})
    return replace(context, settings=settings.model_copy(update={"train": train}))


def _told(difference: Mapping[str, list[str]]) -> str:
    parts = [f"{len(names)} {what}" for what, names in difference.items() if names]
    return f"cases: {', '.join(parts) or 'the same as the champion has, divided otherwise'}"
