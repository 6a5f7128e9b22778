"""Register: one MLflow version for the model, with its evaluation, and the alias it has earned."""

from dataclasses import asdict
from pathlib import Path

from liverseg_core.artifacts.artifact import Facts, Recipe, digest_json
from liverseg_core.artifacts.produce import produce
from liverseg_core.provenance import git_commit
from liverseg_core.stages import EVALUATE, REGISTER, TRAIN
from tasks.context import Context, Record
from tasks.stage import stage_task
from tasks.train import open_training_run


def register(context: Context, dataset: Record, model: Record, evaluation: Record) -> Record:
    """Register the model with its evaluation, or find its version.

    Returns:
        `name`, `version`, `aliases`, `reason` (why it is champion or is not), `run_id`, `cached`, `against`: the
        champion it was compared with (`name`, `version`, `evaluation_key`), or None.
    """
    config = context.settings.register_
    inputs = {"model": model["key"], "evaluation": evaluation["key"], "data": dataset["key"]}
    recipe = Recipe(REGISTER, config.canonical(), inputs)

    def make(_staging: Path) -> Facts:
        from tasks.publish import Registration
        from tasks.publish import register as publish
        from tasks.tracking import connect, find_run, finish_run

        settings = context.settings
        tracking = connect(config.tracking_uri, settings.store, config.experiment)
        run_id = find_run(tracking, model["key"])
        if run_id is None:  # trained under another tracking store, or this one's run was deleted
            run_id = open_training_run(context, dataset, model["key"])
            finish_run(run_id, "FINISHED")
        request = Registration(
            key=recipe.key,
            run_id=run_id,
            name=config.model,
            model=context.store.fetch(TRAIN, model["key"]),
            evaluation=context.store.fetch(EVALUATE, evaluation["key"]),
            summary=evaluation["summary"],
            validation=dataset["validation_key"],
            data_key=dataset["key"],
            tolerance=config.tolerance,
            tags={
                "liverseg.data_key": dataset["key"],
                "liverseg.model_key": model["key"],
                "liverseg.evaluation_key": evaluation["key"],
                "liverseg.config_key": digest_json(settings.train.canonical())[:32],
                "liverseg.git_commit": git_commit() or "unknown",
            },
        )
        record = asdict(publish(tracking, request))
        return {name: record[name] for name in ("name", "version", "aliases", "reason", "run_id", "against")}

    artifact = produce(context.store, recipe, make)
    facts = artifact.facts
    context.report.finished("register", f"{facts['name']} version {facts['version']}", artifact.cached)
    return {"key": artifact.key, "cached": artifact.cached, **facts}


register_task = stage_task(register)
