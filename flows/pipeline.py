"""The whole project on one page: from a dataset to a registered model and its report."""

from prefect import flow

from flows.context import open_context
from flows.run_page import run_name, show_model, show_report
from flows.settings import load_settings
from flows.training import train_there_or_here
from tasks.context import Record, fold_contexts
from tasks.ensemble import Fold, ensemble_task, whole
from tasks.evaluate import evaluate_task
from tasks.ingest import ingest_task
from tasks.register import register_task
from tasks.registry.place import require_tracking
from tasks.report import report_task
from tasks.split import split_task


@flow(name="ingest-train-evaluate", flow_run_name=run_name, persist_result=False, validate_parameters=True)
def ingest_train_evaluate(
    source: str | None = None,
    store: str | None = None,
    config: str | None = None,
    overrides: list[str] | None = None,
) -> Record:
    """Take a dataset to a registered model; every stage that was done before is found, not done again.

    Args:
        source: A Decathlon tar or folder.
        store: Where artifacts live.
        config: A YAML file, or the name of a recipe.
        overrides: `key=value`, as after `--set`.

    Returns:
        One record a stage, by its name.
    """
    context = open_context(load_settings(config, overrides or (), source=source, store=store))
    require_tracking(context.settings.register_.tracking_uri, context.settings.store)
    cases = ingest_task(context)
    folds = []
    for part in fold_contexts(context):
        dataset = split_task(part, cases)
        model = train_there_or_here(part, dataset)
        folds.append(Fold(dataset, model, evaluate_task(part, dataset, model)))
    made = whole(folds, lambda: ensemble_task(context, folds))
    version = register_task(context, made.dataset, made.model, made.evaluation)
    show_model(made, version)
    page = report_task(context, cases, made, version)
    show_report(page)
    stages = {"split": made.dataset, "train": made.model, "evaluate": made.evaluation, "register": version}
    return {"ingest": cases, **stages, "report": page}
