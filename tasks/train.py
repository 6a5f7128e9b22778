"""Train: a model from the training cases, tracked as one MLflow run that a restart resumes."""

from pathlib import Path
from typing import Literal

from liverseg_core.artifact import Facts, Recipe, Stage, digest_json, produce
from liverseg_core.errors import Interrupted
from liverseg_core.ingest import STAGE as INGEST
from tasks.context import Context, Record
from tasks.stage import stage_task

STAGE = Stage("train", "models", version=1, libraries=("monai", "torch", "torchio"), resumable=True)


def train(context: Context, dataset: Record) -> Record:
    """Train on the dataset's training cases, or find the model that is there.

    Returns:
        `key`, `run_id` of the MLflow run, `steps`, `resumed_from` and the last training values, `cached`.
    """
    settings, training = context.settings, dataset["training"]
    inputs = {"training": training, "ingest": settings.ingest.canonical()}
    recipe = Recipe(STAGE, settings.train.canonical(), inputs)
    artifact = produce(context.store, recipe, lambda staging: _train(context, dataset, recipe.key, staging))
    note = f"{settings.train.steps} steps, model {artifact.key[:12]}"
    context.report.finished("train", note, artifact.cached)
    return {"key": artifact.key, "cached": artifact.cached, **artifact.facts}


def _train(context: Context, dataset: Record, key: str, staging: Path) -> Facts:
    # torch, torchio and mlflow take seconds to import: a cached rerun never pays for them
    from liverseg_core.train import TrainJob
    from liverseg_core.train import train as fit
    from tasks.tracking import MetricLog, connect, finish_run, open_run

    settings, training = context.settings, dataset["training"]
    tracking = connect(settings.register_.tracking_uri, context.store, settings.register_.experiment)
    params = {"train": settings.train.canonical(), "ingest": settings.ingest.canonical()}
    tags = {"liverseg.data_key": dataset["key"], "liverseg.dataset": dataset["dataset"]}
    run_id = open_run(tracking, key, f"{dataset['dataset']} {key[:8]}", params, tags)
    job = TrainJob(
        cases=[context.store / INGEST.folder / case["key"] for case in training],
        config=settings.train,
        ingest=settings.ingest,
        compute=settings.compute,
        data_key=digest_json(training)[:32],
        progress=lambda step, steps: context.report.progress("train", step, steps),
    )
    ended: Literal["FINISHED", "KILLED", "FAILED"] = "FAILED"
    try:
        with MetricLog(run_id) as log:
            facts = fit(job, staging, log)
        ended = "FINISHED"
    except Interrupted:
        ended = "KILLED"
        raise
    finally:
        finish_run(run_id, ended)
    return {**facts, "run_id": run_id}


train_task = stage_task(train)
