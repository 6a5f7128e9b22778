"""Training as a flow of its own, so that one pool's flow may have another pool's machine train."""

import os
from typing import TYPE_CHECKING, Any, cast

from prefect import flow

from flows.context import open_run
from flows.settings import every_setting, load_settings
from liverseg_core.artifacts.stages import SPLIT
from liverseg_core.config import Settings
from liverseg_core.errors import LiversegError
from tasks.context import Context, Record
from tasks.train import is_trained, train_task

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


DEVICE = "LIVERSEG_COMPUTE__DEVICE"
ATTEMPTS = 4
"""How often a training is asked for whose process dies each time."""


@flow(name="train", flow_run_name="train on {dataset}", persist_result=False)
def train(settings: dict[str, Any], dataset: str) -> Record:
    """Train on a dataset that is in the store, or find the model that is there.

    Args:
        settings: All settings of the flow that asks; `compute.device` is this machine's where its environment
            names one.
        dataset: The data version, a key of `split`.

    Returns:
        The record of the stage `train`.

    Raises:
        LiversegError: LS206 when the store has no such dataset; those of `train`.
    """
    context = open_run(_of_this_machine(Settings.model_validate(settings)))
    found = context.store.find(SPLIT, dataset)
    if found is None:
        what = f"there is no dataset {dataset} in {context.settings.store}"
        raise LiversegError("LS206", what, "a store that all workers share", "Correct store, and run again")
    return train_task(context, {"key": dataset, **found.facts})


def _of_this_machine(settings: Settings) -> Settings:
    """The settings with this machine's device, where its environment names one: who asks may have none."""
    if DEVICE not in os.environ:
        return settings
    here = {DEVICE: os.environ[DEVICE], "LIVERSEG_COMPUTE__PROCESSES": str(settings.compute.processes)}
    device = load_settings(environment=here).compute.device
    return settings.model_copy(update={"compute": settings.compute.model_copy(update={"device": device})})


def train_there_or_here(context: Context, dataset: Record) -> Record:
    """Have `compute.train_deployment` train, where one is named; otherwise train in this process.

    Raises:
        LiversegError: LS409 when that run fails, or leaves no model in this store; those of `train`.
    """
    there = context.settings.compute.train_deployment
    if there and not is_trained(context, dataset):
        run = _ask(context, dataset, there if "/" in there else f"train/{there}")
        if run.state is None or not run.state.is_completed() or not is_trained(context, dataset):
            ended = run.state and run.state.name
            raise LiversegError(
                "LS409",
                f"the run {run.name!r} of {there} ended {ended} and left no model here",
                "a training that completes, into this store",
                "See that run's log, then run the same command again; it goes on from its checkpoint",
            )
    return train_task(context, dataset)


def _ask(context: Context, dataset: Record, deployment: str) -> "FlowRun":
    """Have a deployment train; where its process died, again, from the checkpoint."""
    from prefect import runtime
    from prefect.deployments import run_deployment

    settings = every_setting(context.settings)
    settings["compute"]["train_deployment"] = None
    asked = {"settings": settings, "dataset": dataset["key"]}
    for attempt in range(ATTEMPTS):
        # This flow's own process may die too: taken up again, it finds the run that it asked for before.
        key = f"{runtime.flow_run.id} {dataset['key']} {attempt}"
        run = cast("FlowRun", run_deployment(deployment, parameters=asked, idempotency_key=key))
        if run.state is None or not run.state.is_crashed():
            break
    return run
