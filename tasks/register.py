"""Register: one MLflow version for the model, with its evaluation, and the alias it has earned."""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liverseg_core.artifacts.artifact import Facts, Recipe, digest_json
from liverseg_core.artifacts.produce import Store, produce
from liverseg_core.artifacts.stages import EVALUATE, INGEST, REGISTER, TRAIN
from liverseg_core.config import TrainConfig
from liverseg_core.errors import LiversegError
from liverseg_core.words import counted
from tasks.context import Context, Record
from tasks.evaluate import evaluate
from tasks.registry.promotion import Measured, Seen
from tasks.stage import stage_task
from tasks.train import open_training_run

if TYPE_CHECKING:
    from tasks.registry.tracking import Tracking

AT_ONCE = 16
"""Manifests that are read at a time."""


def register(context: Context, dataset: Record, model: Record, evaluation: Record) -> Record:
    """Register the model with its evaluation, or find its version.

    Returns:
        `name`, `version`, `aliases`, `reason` (why it is champion or is not), `run_id`, `cached`, `against`:
        the champion it was compared with (`name`, `version`, `evaluation_key`), None without one.
    """
    config = context.settings.register_
    inputs = {"model": model["key"], "evaluation": evaluation["key"], "data": dataset["key"]}
    recipe = Recipe(REGISTER, config.canonical(), inputs)

    def make(_staging: Path) -> Facts:
        from tasks.registry.publish import Registration
        from tasks.registry.publish import register as publish
        from tasks.registry.tracking import connect_patiently, find_run, finish_run

        settings = context.settings
        tracking = connect_patiently(settings)
        run_id = find_run(tracking, model["key"])
        if run_id is None:  # trained under another tracking store, or this one's run was deleted
            run_id = open_training_run(context, dataset, model["key"])
            finish_run(run_id, "FINISHED")
        seen = seen_cases(context.store, dataset, out_of_fold="members" in model)
        _score_again(context, tracking, seen, (dataset, model, evaluation))
        trained = trainings(context.store, model["key"])
        request = Registration(
            key=recipe.key,
            run_id=run_id,
            config=config,
            model=context.store.fetch(TRAIN, model["key"]),
            evaluation=context.store.fetch(EVALUATE, evaluation["key"]),
            summary=evaluation["summary"],
            seen=seen,
            data_key=dataset["key"],
            started_from=tuple(
                one["inputs"]["start_from"] for one in trained if "start_from" in one["inputs"]
            ),
            tags={
                "liverseg.dataset": dataset["dataset"],
                "liverseg.cases": f"{len(dataset['training'])} training and "
                f"{counted(len(dataset['validation']), 'validation case')}",
                "liverseg.recipe": _recipe_line(settings.train, len(trained)),
                "liverseg.data_key": dataset["key"],
                "liverseg.model_key": model["key"],
                "liverseg.evaluation_key": evaluation["key"],
                "liverseg.config_key": digest_json(settings.train.canonical())[:32],
                "liverseg.git_commit": trained[0]["git_commit"] or "unknown",
                **flow_run_link("liverseg.flow_run"),
            },
        )
        record = asdict(publish(tracking, request))
        return {name: record[name] for name in ("name", "version", "aliases", "reason", "run_id", "against")}

    artifact = produce(context.store, recipe, make)
    facts = artifact.facts
    context.report.finished("register", f"{facts['name']} version {facts['version']}", artifact.cached)
    return {"key": artifact.key, "cached": artifact.cached, **facts}


def _score_again(
    context: Context, tracking: "Tracking", seen: Seen, made: tuple[Record, Record, Record]
) -> None:
    """See that a champion that older definitions scored on these cases is scored by today's.

    A candidate could not be compared with it otherwise. The members of an ensemble that is another than the
    candidate are not evaluated again: its scores stay, and so does it, until somebody promotes by force.
    """
    from tasks.registry.version_scores import add_scores, scoring
    from tasks.registry.versions import list_versions

    dataset, model, evaluation = made
    versions = list_versions(tracking, context.settings.register_.model)
    champion = next((one for one in versions if "champion" in one.aliases), None)
    if champion is None or scoring(champion.tags, seen.validation) in (None, str(EVALUATE.version)):
        return
    key = champion.tags.get("liverseg.model_key", "none")
    if key != model["key"]:
        if seen.out_of_fold or context.store.find(TRAIN, key) is None:
            return
        evaluation = evaluate(context, dataset, {"key": key})
        seen = replace(seen, training=[])
    measured = Measured.of(seen, evaluation["cases"], evaluation["key"])
    add_scores(tracking, f"models:/{champion.name}/{champion.version}", measured)


def seen_cases(store: Store, dataset: Record, out_of_fold: bool = False) -> Seen:
    """Which scans a model of this dataset is measured on and which it was trained on.

    Validation cases are known by scan, label and corrected spacing as they came: measured in native space,
    scores may be compared however the cases were resampled.

    Args:
        store: Holds the cases.
        dataset: From `split`, or of an ensemble.
        out_of_fold: Whether each case was scored by a member that did not train on it.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        training, validation = (
            list(pool.map(lambda case: _came_as(store, case["key"]), dataset[group]))
            for group in ("training", "validation")
        )
    listed = sorted(
        [came["case"], came["image"], came["label"], came.get("spacing_mm")] for came in validation
    )
    return Seen(
        validation=digest_json(["out of fold", listed] if out_of_fold else listed)[:32],
        cases={came["case"]: _short(came["image"]) for came in validation},
        training=[_short(came["image"]) for came in training],
        out_of_fold=out_of_fold,
    )


def flow_run_link(name: str) -> dict[str, str]:
    """The page of the flow run that this process works for, under a name; a temporary API has none."""
    from prefect import runtime
    from prefect.settings import PREFECT_UI_URL

    known = runtime.flow_run.id and PREFECT_UI_URL.value()
    return {name: runtime.flow_run.ui_url} if known else {}


def _came_as(store: Store, key: str) -> Mapping[str, Any]:
    """What decided a stored case: name, digests of scan and label."""
    found = store.find(INGEST, key)
    if found is None:
        raise LiversegError(
            "LS505",
            f"case {key} is not in {store}",
            "every case of the dataset",
            "Run `liverseg ingest` again",
        )
    came: Mapping[str, Any] = found.manifest["inputs"]
    return came


def _short(digest: str) -> str:
    return hashlib.sha256(digest.encode()).hexdigest()[:16]


def trainings(store: Store, key: str) -> list[Mapping[str, Any]]:
    """The manifests of a model's training; of an ensemble, those of its members."""
    found = store.find(TRAIN, key)
    assert found, "it was evaluated"
    members = found.manifest["inputs"].get("members")
    return [one for member in members for one in trainings(store, member)] if members else [found.manifest]


def _recipe_line(train: TrainConfig, members: int) -> str:
    """A training in a line."""
    patch = " × ".join(map(str, train.patch_size))
    several = f"{members} of " if members > 1 else ""
    return (
        f"{several}{train.network.name}, {train.steps:,} steps of {train.batch_size} patches of {patch} "
        f"voxels, {train.loss}, {train.optimiser} at {train.learning_rate:g}"
    )


register_task = stage_task(register)
