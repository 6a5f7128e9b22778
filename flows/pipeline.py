"""The whole project on one page: from a dataset to a registered model and its report."""

from prefect import flow

from flows.context import open_run
from flows.order import Stages, follow
from flows.run_page import run_name, showing
from flows.settings import load_settings
from flows.training import train_there_or_here
from tasks.context import Record
from tasks.ensemble import ensemble_task
from tasks.evaluate import evaluate_task
from tasks.ingest import ingest_task
from tasks.register import register_task
from tasks.report import report_task
from tasks.split import split_task

STAGES = showing(
    Stages(
        ingest=ingest_task,  # every scan of the source into the store, at one spacing
        split=split_task,  # the cases into training and validation
        train=train_there_or_here,  # a model from the training cases
        evaluate=evaluate_task,  # its Dice and more on the validation cases, in each scan's own space
        ensemble=ensemble_task,  # of several folds, their models as one
        register=register_task,  # a version in MLflow, and whether it is champion
        report=report_task,  # a page to look at
    )
)
"""The stages as tasks; flows/order.py says which gets what of which."""


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
    context = open_run(load_settings(config, overrides or (), source=source, store=store))
    return follow(context, STAGES)
