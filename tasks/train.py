"""Train: a model from the training cases, tracked as one MLflow run that a restart resumes."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from liverseg_core.artifacts.artifact import Facts, Recipe, digest_json
from liverseg_core.artifacts.produce import Store, produce
from liverseg_core.artifacts.stages import INGEST, TRAIN
from liverseg_core.errors import Interrupted, LiversegError
from tasks.context import Context, Record, fetch_cases
from tasks.registry.model_reference import resolve_model, weights_digest
from tasks.stage import stage_task

if TYPE_CHECKING:
    from liverseg_core.models.known_data import SeenCase

_logger = logging.getLogger(__name__)


def train(context: Context, dataset: Record) -> Record:
    """Train on the dataset's training cases, or find the model that is there.

    Returns:
        `key`, `run_id` of the MLflow run, `steps`, `resumed_from`, `device` and the last training values,
        `cached`.
    """
    settings = context.settings
    recipe, start = _recipe(context, dataset)

    def make(staging: Path) -> Facts:
        return _train(context, dataset, _Making(recipe.key, staging, start))

    artifact = produce(context.store, recipe, make)
    note = f"{settings.train.steps} steps, model {artifact.key[:12]}"
    context.report.finished("train", note, artifact.cached)
    return {"key": artifact.key, "cached": artifact.cached, **artifact.facts}


def is_trained(context: Context, dataset: Record) -> bool:
    """Whether the store holds the model that `train` would make."""
    return context.store.find(TRAIN, _recipe(context, dataset)[0].key) is not None


def _recipe(context: Context, dataset: Record) -> tuple[Recipe, Path | None]:
    """What decides the model, and the model that its weights begin with."""
    settings = context.settings
    inputs = {"training": dataset["training"], "ingest": settings.ingest.canonical()}
    if settings.train.validate_every:  # they may decide which weights, and how long
        inputs["validation"] = dataset["validation"]
    start = resolve_model(settings, settings.train.start_from) if settings.train.start_from else None
    if start:
        inputs["start_from"] = weights_digest(start)
    return Recipe(TRAIN, settings.train.canonical(), inputs), start


@dataclass(frozen=True)
class _Making:
    """A model under way: its key, its staging folder, and the model it starts from."""

    key: str
    staging: Path
    start_from: Path | None


def _train(context: Context, dataset: Record, making: _Making) -> Facts:
    context.report.progress("train", 0, context.settings.train.steps)
    # torch, torchio and mlflow take seconds to import: a cached rerun never pays for them
    from liverseg_core.models.known_data import after, write_seen
    from liverseg_core.models.model import device_name, pick_device
    from liverseg_core.training.train import HISTORY, TrainJob
    from liverseg_core.training.train import train as fit
    from tasks.registry.metric_log import MetricLog
    from tasks.registry.tracking import finish_run

    settings, training = context.settings, dataset["training"]
    write_seen(making.staging, after(making.start_from, _shown(context.store, dataset)))
    run_id = open_training_run(context, dataset, making.key)
    shown = settings.train.validate_cases if settings.train.validate_every else 0
    job = TrainJob(
        cases=list(fetch_cases(context, training).values()),
        config=settings.train,
        ingest=settings.ingest,
        compute=settings.compute,
        data_key=digest_json(training)[:32],
        progress=lambda step, steps: context.report.progress("train", step, steps),
        saved=lambda folder: _mirror(context, making.key, folder),
        validation=list(fetch_cases(context, dataset["validation"][:shown]).values()),
        start_from=making.start_from,
    )
    ended: Literal["FINISHED", "KILLED", "FAILED"] = "FAILED"
    try:
        with MetricLog(run_id) as log:
            _replay(making.staging / HISTORY, log)
            facts = fit(job, making.staging, log)
        ended = "FINISHED"
    except Interrupted:
        ended = "KILLED"
        raise
    finally:
        finish_run(run_id, ended)
    device = device_name(pick_device(settings.compute.device), settings.compute.processes)
    return {**facts, "run_id": run_id, "device": device}


def _shown(store: Store, dataset: Record) -> Iterator["SeenCase"]:
    """The cases that the model will have seen."""
    from liverseg_core.models.known_data import ROLES, SeenCase

    for role in ROLES[:2]:
        for case in dataset[role]:
            found = store.find(INGEST, case["key"])
            if found:  # else `fetch_cases` says what is missing
                yield SeenCase.of(found.facts, role)


def _mirror(context: Context, key: str, checkpoints: Path) -> None:
    """Training does not stop for a store that does not answer: its checkpoints are on this machine."""
    try:
        context.store.mirror(TRAIN, key, checkpoints)
    except LiversegError as error:
        _logger.warning("a checkpoint stays on this machine alone: %s", error)


def open_training_run(context: Context, dataset: Record, key: str) -> str:
    """The MLflow run of a model key: the one there is, or a new one. Returns its id."""
    from tasks.registry.tracking import connect_patiently, open_run

    settings = context.settings
    tracking = connect_patiently(settings)
    params = {"train": settings.train.canonical(), "ingest": settings.ingest.canonical()}
    tags = {"liverseg.data_key": dataset["key"], "liverseg.dataset": dataset["dataset"]}
    return open_run(tracking, key, f"{dataset['dataset']} {key[:8]}", params, tags)


def _replay(history: Path, log: Callable[[int, dict[str, float]], None]) -> None:
    """Log again what a killed training may not have delivered; what was delivered is stored once."""
    lines = history.read_text().splitlines(keepends=True) if history.exists() else []
    for line in lines:
        if line.endswith("\n"):
            values = json.loads(line)
            log(values.pop("step"), values)


train_task = stage_task(train)
