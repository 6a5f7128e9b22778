"""Ensemble: the models of all folds as one, with the out-of-fold scores of every case."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from liverseg_core.artifacts.artifact import Facts, Recipe, digest_json
from liverseg_core.artifacts.produce import produce
from liverseg_core.artifacts.stages import EVALUATE, POOL, TRAIN, UNITE
from liverseg_core.words import counted
from tasks.context import Context, Record
from tasks.stage import stage_task


@dataclass(frozen=True)
class Fold:
    """What the stages made of one fold."""

    dataset: Record
    model: Record
    evaluation: Record


def whole(folds: Sequence[Fold], united: Callable[[], Record]) -> Fold:
    """The only fold there is, or what `united` makes of several; the last, where none was to be evaluated."""
    if len(folds) == 1 or not folds[-1].evaluation:
        return folds[-1]
    record = united()
    return Fold(record["dataset"], record["model"], record["evaluation"])


def ensemble(context: Context, folds: Sequence[Fold]) -> Record:
    """One model of the folds' models, or the one that is there.

    Its evaluation pools theirs: each case was predicted by the one model that did not train on it. That is an
    estimate of the members; the ensemble itself has trained on every case.

    Returns:
        `dataset`, `model` and `evaluation`, as the single stages would return them; `cached`.
    """
    members = [fold.model["key"] for fold in folds]
    united = Recipe(UNITE, {}, {"members": members})
    model = produce(context.store, united, lambda path: _unite(context, members, path))
    scored = [fold.evaluation["key"] for fold in folds]
    config = context.settings.evaluate
    inputs = {"model": model.key, "evaluations": scored}

    def pool(path: Path) -> Facts:
        from liverseg_core.evaluation.evaluate import pool as pool_scores

        return pool_scores([context.store.fetch(EVALUATE, key) for key in scored], config, path)

    evaluation = produce(context.store, Recipe(POOL, config.canonical(), inputs), pool)
    cached = model.cached and evaluation.cached
    context.report.finished("ensemble", f"{counted(len(folds), 'fold')}, model {model.key[:12]}", cached)
    validation = [case for fold in folds for case in fold.dataset["validation"]]
    dataset = {
        "dataset": folds[0].dataset["dataset"],
        "key": digest_json([fold.dataset["key"] for fold in folds])[:32],
        "training": validation,
        "validation": validation,
        "validation_key": digest_json(["out of fold", sorted(case["key"] for case in validation)])[:32],
    }
    return {
        "dataset": dataset,
        "model": {"key": model.key, "cached": model.cached, **model.facts},
        "evaluation": {
            "key": evaluation.key,
            "path": context.store.place(evaluation),
            "cached": evaluation.cached,
            **evaluation.facts,
        },
        "cached": cached,
    }


def _unite(context: Context, members: Sequence[str], folder: Path) -> Facts:
    from liverseg_core.models.ensemble import combine

    return combine([context.store.fetch(TRAIN, key) for key in members], folder)


ensemble_task = stage_task(ensemble)
