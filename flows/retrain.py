"""Retraining that may run on a schedule: only where data is new, from the champion on, and to the better."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from prefect import flow

from flows.console import say
from flows.context import open_run
from flows.order import follow
from flows.pipeline import STAGES
from flows.run_page import run_name
from flows.settings import load_settings
from liverseg_core.errors import LiversegError
from tasks.context import Context, Record
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
    context = open_run(load_settings(config, overrides or (), source=source, store=store))
    if context.settings.split.fold == "all":
        remedy = "Leave split.fold out, or train the folds with `liverseg run`"
        raise LiversegError("LS215", "retrain can't train folds", "one split", remedy)
    looked = follow(context, STAGES.until("split"))
    data = {name: looked[name] for name in ("ingest", "split")}
    known = standing(context, data["split"])
    if known.trained:
        say(f"nothing new: version {known.trained.version} was trained on these data")
        told = {"version": known.trained.version, "difference": known.difference}
        return {"retrained": False, **told, **data}
    say(_told(known.difference))
    if known.champion:
        measure_champion(context, data["split"], known.champion)
        context = _from_champion(context, known.champion)
    done = follow(context, STAGES.given(data))
    told = {"version": done["register"]["version"], "difference": known.difference}
    return {"retrained": True, **told, **done}


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
