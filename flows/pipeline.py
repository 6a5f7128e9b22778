"""The whole project on one page: from a dataset to a registered model and its report."""

from pathlib import Path

from prefect import flow, runtime

from flows.console import current_report
from flows.run_page import run_name, show_model, show_report
from flows.runners import open_runner
from flows.settings import load_settings
from liverseg_core.artifacts.local_store import in_bucket
from liverseg_core.config import Settings
from liverseg_core.errors import LiversegError
from tasks.context import Context, Record, fold_contexts, require_tracking
from tasks.ensemble import Fold, ensemble_task, whole
from tasks.evaluate import evaluate_task
from tasks.ingest import ingest_task
from tasks.register import register_task
from tasks.report import report_task
from tasks.split import split_task
from tasks.train import train_task


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
        model = train_task(part, dataset)
        folds.append(Fold(dataset, model, evaluate_task(part, dataset, model)))
    made = whole(folds, lambda: ensemble_task(context, folds))
    version = register_task(context, made.dataset, made.model, made.evaluation)
    show_model(made, version)
    page = report_task(context, cases, made, version)
    show_report(page)
    stages = {"split": made.dataset, "train": made.model, "evaluate": made.evaluation, "register": version}
    return {"ingest": cases, **stages, "report": page}


def open_context(settings: Settings) -> Context:
    """What the stages need, from the settings and from whoever watches this process.

    Raises:
        LiversegError: LS210 in a deployment with a relative store, which would end with the run's folder.
    """
    if runtime.deployment.id and not in_bucket(settings.store) and not Path(settings.store).is_absolute():
        allowed = "an absolute path, or s3://bucket/prefix"
        what = f"this run of a deployment has the relative store {settings.store!r}"
        raise LiversegError("LS210", what, allowed, "Set LIVERSEG_STORE and deploy again")
    return Context(settings, lambda: open_runner(settings.compute), current_report())
