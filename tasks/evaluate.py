"""Evaluate: the model on the validation cases, in their native space."""

import functools
from pathlib import Path

from liverseg_core.artifacts.artifact import Facts, Recipe
from liverseg_core.artifacts.produce import produce
from liverseg_core.artifacts.stages import EVALUATE, TRAIN
from liverseg_core.words import counted
from tasks.context import Context, Record, fetch_cases
from tasks.stage import stage_task


def evaluate(context: Context, dataset: Record, model: Record) -> Record:
    """Score the model on the validation cases, or find the scores that are there.

    Returns:
        `key`, `path`, `summary`, `cases`, `device`, `cached`.
    """
    settings, validation = context.settings, dataset["validation"]
    inputs = {"model": model["key"], "validation": validation}
    recipe = Recipe(EVALUATE, settings.evaluate.canonical(), inputs)

    def make(staging: Path) -> Facts:
        from liverseg_core.evaluation.evaluate import evaluate as score
        from liverseg_core.models.model import device_name, load_model

        network = load_model(context.store.fetch(TRAIN, model["key"]), settings.compute.device)
        cases = fetch_cases(context, validation)
        progress = functools.partial(context.report.progress, "evaluate")
        facts = score(network, cases, settings.evaluate, staging, progress)
        return {**facts, "device": device_name(network.device)}

    artifact = produce(context.store, recipe, make)
    context.report.finished("evaluate", counted(len(validation), "validation case"), artifact.cached)
    place = context.store.place(artifact)
    return {"key": artifact.key, "path": place, "cached": artifact.cached, **artifact.facts}


evaluate_task = stage_task(evaluate)
