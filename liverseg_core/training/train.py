"""Training, top to bottom: patches in, checkpoints on the way, a model folder out.

On one machine's CPU the weights depend on the config and the cases alone: a run that is killed and started
again ends with the same bits as one that was not.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from liverseg_core.allocator import first_step_done, memory_kept
from liverseg_core.artifacts.artifact import Facts
from liverseg_core.cases.store import open_case
from liverseg_core.durable import write_atomically
from liverseg_core.errors import Interrupted
from liverseg_core.models.model import SPEC, Model, ModelSpec, save_model
from liverseg_core.models.networks import check_patch_size
from liverseg_core.out_of_memory import out_of_memory
from liverseg_core.training.checkpoint import Checkpoint, load_best, save_best, save_checkpoint
from liverseg_core.training.distributed_training import World, join, joined, share_of_batch, world_size
from liverseg_core.training.interruption import repeatable, stop_signal
from liverseg_core.training.losses import Loss, build_loss, count, means
from liverseg_core.training.no_room import no_room
from liverseg_core.training.optimisation import follow, learning_rate
from liverseg_core.training.patch_dataset import PatchDataset
from liverseg_core.training.patches import patch_stream
from liverseg_core.training.system_metrics import Lap
from liverseg_core.training.train_job import TrainJob, Values
from liverseg_core.training.train_processes import launch
from liverseg_core.training.training_state import State, begin, memory_format
from liverseg_core.training.validation import scores, validate

__all__ = ["CHECKPOINTS", "HISTORY", "TrainJob", "train"]

HISTORY = "history.jsonl"
CHECKPOINTS = "checkpoints"
Log = Callable[[int, Values], None]
Batch = tuple[torch.Tensor, torch.Tensor]


def train(job: TrainJob, staging: Path, log: Log) -> Facts:
    """Train a model, going on from the last checkpoint in `staging` if there is one.

    Args:
        job: What to train on what.
        staging: Receives `model.safetensors`, `model.json` and `history.jsonl`.
        log: Told every `log_every` steps the means since it was last told, and what they cost the machine,
            which is in no file; and every validation.

    Returns:
        Steps, the steps that were gone on from, and the last of all logged values. With `compute.processes`
        or under torchrun, the first process alone writes and logs, and the others return nothing.

    Raises:
        Interrupted: On SIGTERM and SIGINT, after saving a checkpoint.
        LiversegError: LS271 for the device; LS272 when the loss stops being a number; LS273, LS274 for a
            network that does not fit; LS275 for a batch that does not divide; LS371, LS372 for cases that
            cannot be trained on; LS531 to LS533 for checkpoints; LS704 when memory is wanting; LS771 when a
            training process is lost.
    """
    config = job.config
    processes = world_size(job.compute.processes)
    share = share_of_batch(config.batch_size, config.accumulate, processes)
    check_patch_size(config.network, config.patch_size, share)
    if (staging / SPEC).exists():  # killed after the model's last file, before the artifact was committed
        return _finish(staging, [_facts(staging)["steps"]])
    if processes > 1 and not joined():
        return launch(job, staging, processes, log)
    with join(job.compute.device) as world, out_of_memory(partial(no_room, job, world)):
        state = begin(job, staging / CHECKPOINTS, world.device, world.first)
        exact = world.device.type == "cpu" or job.compute.deterministic
        with repeatable(exact), memory_kept(), stop_signal() as stopped:
            _fit(_Run(job, staging, log, world, stopped), state)
        return _leave(job, staging, state) if world.first else {}


@dataclass(frozen=True)
class _Run:
    """What training does not change."""

    job: TrainJob
    staging: Path
    log: Log
    world: World
    stopped: list[int]
    """Signals that came."""

    @property
    def parts(self) -> int:
        """Parts of a step's batch, over processes and one after another."""
        return self.world.size * self.job.config.accumulate

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of the network's inside."""
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.job.config.precision)
        return torch.autocast(self.world.device.type, kind) if kind else contextlib.nullcontext()


def _fit(run: _Run, state: State) -> None:
    """Train, validate, log and save until the recipe's end or a signal."""
    config, world = run.job.config, run.world
    forward = world.share(state.network)
    if run.job.compute.compile:
        forward = torch.compile(forward)  # type: ignore[assignment]
    if world.first:  # only the lines up to the checkpoint: those after it will be written again
        write_atomically(run.staging / HISTORY, "".join(state.history).encode())
    lap = Lap()
    batches = lap.waiting(_patches(run, state.step))
    loss_of = build_loss(config)
    while True:
        if _validation_due(run, state):
            _validate(run, state)
        if state.step == config.steps or (config.patience and state.stale >= config.patience):
            return
        _step(run, state, forward, loss_of, batches)
        lap.patches += config.batch_size

        if world.first:
            run.job.progress(state.step, config.steps)
        last, stop = state.step == config.steps, _asked_to_stop(run)
        if state.step % config.log_every == 0 or last or _validation_due(run, state):
            rate = learning_rate(config, state.step - 1)
            values = {**means(world.sum(state.totals), state.step), "learning_rate": rate}
            state.totals.zero_()
            _tell(run, state, values, lap.values(world.device))
        if state.step % config.checkpoint_every == 0 or last or stop:
            _save(run, state)
        if stop:
            raise _interrupted(run, state, stop)


def _step(run: _Run, state: State, forward: nn.Module, loss_of: Loss, batches: Iterator[Batch]) -> None:
    """Move the weights once, by the mean gradient over all parts of the batch."""
    config, world = run.job.config, run.world
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(config, state.step)
    order = memory_format(run.job.compute, world.device)
    for part in range(config.accumulate):
        image, label = next(batches)
        # first there, then in order: the other way round the CPU would turn it
        x = image.to(world.device, non_blocking=True).contiguous(memory_format=order)
        y = label.to(world.device, non_blocking=True)
        if (
            world.device.type != "cpu"
        ):  # z-fastest as logits are: a GPU reads side by side; a CPU need not turn
            y = y.contiguous()
        with world.gradients(forward, shared=part == config.accumulate - 1):
            with run.autocast():
                outputs = forward(x)
            outputs = outputs if isinstance(outputs, list) else [outputs]
            loss = loss_of(outputs, y)
            torch.autograd.backward(state.scaler.scale(loss / config.accumulate))
        state.totals.add_(count(loss.detach(), outputs[0].detach(), y))
    state.scaler.unscale_(state.optimiser)
    if config.gradient_clip is not None:
        nn.utils.clip_grad_norm_(state.network.parameters(), config.gradient_clip)
    state.scaler.step(state.optimiser)
    state.scaler.update()
    state.optimiser.zero_grad(set_to_none=True)
    if state.average is not None and config.ema:
        follow(state.average, state.network, config.ema, state.step)
    state.step += 1
    first_step_done()


def _patches(run: _Run, step: int) -> Iterator[Batch]:
    """This process's parts of every step's batch, from a step on: together, the batches of one process."""
    config, compute, world = run.job.config, run.job.compute, run.world
    # Loader workers would each hold all volumes; the operating system's cache serves them instead.
    resident_mb = 0 if compute.loader_workers else compute.resident_mb
    dataset = PatchDataset([open_case(path) for path in run.job.cases], config, resident_mb)
    steps = range(step * run.parts + world.rank, config.steps * run.parts, world.size)
    yield from patch_stream(dataset, steps, config.batch_size // run.parts, compute, world.device)


def _validation_due(run: _Run, state: State) -> bool:
    every, step = run.job.config.validate_every, state.step
    due = bool(every) and step > state.validated and (step % every == 0 or step == run.job.config.steps)
    return due and bool(run.job.validation)


def _validate(run: _Run, state: State) -> None:
    """Predict validation cases, each process its share; keep the weights if they are the best so far."""
    config, world = run.job.config, run.world
    world.same_statistics(state.chosen)
    training = state.chosen.training
    model = Model(state.chosen.eval(), _spec(run.job), world.device)
    cases = run.job.validation[: config.validate_cases][world.rank :: world.size]
    with run.autocast():
        sums = world.sum(validate(model, cases, run.stopped))
    state.chosen.train(training)
    if stop := _asked_to_stop(run):  # some cases were left out: all of them again after the restart
        _save(run, state)
        raise _interrupted(run, state, stop)
    values = scores(sums)
    score = sum(values.values()) / max(1, len(values))
    state.validated, state.stale = state.step, state.stale + 1
    if score > state.best:
        state.best, state.stale = score, 0
        if world.first:
            kept = Checkpoint(state.step, run.job.data_key, {"weights": state.chosen.state_dict()})
            save_best(run.staging / CHECKPOINTS, kept)
    _tell(run, state, values, {})


def _asked_to_stop(run: _Run) -> int:
    """The signal that came to any of the processes, or 0; they must all stop after the same step."""
    return run.world.any(run.stopped[0] if run.stopped else 0)


def _interrupted(run: _Run, state: State, number: int) -> Interrupted:
    return Interrupted(number, f"training stopped at step {state.step} of {run.job.config.steps}")


def _tell(run: _Run, state: State, values: Values, costs: Values) -> None:
    state.history.append(json.dumps({"step": state.step, **values}) + "\n")
    if run.world.first:
        with (run.staging / HISTORY).open("a") as file:
            file.write(state.history[-1])
        run.log(state.step, {**values, **costs})


def _save(run: _Run, state: State) -> None:
    folder, totals = run.staging / CHECKPOINTS, run.world.sum(state.totals)
    if run.world.first:
        save_checkpoint(folder, state.checkpoint(run.job.data_key, totals))
        run.job.saved(folder)


def _leave(job: TrainJob, staging: Path, state: State) -> Facts:
    """Write the model, then leave only files that are the same however often training was interrupted."""
    if job.config.choose == "best" and job.validation:
        state.chosen.load_state_dict(load_best(staging / CHECKPOINTS).state["weights"])
    write_atomically(staging / HISTORY, "".join(state.history).encode())
    save_model(staging, state.chosen, _spec(job))
    return _finish(staging, state.resumed_from)


def _finish(staging: Path, resumed_from: Sequence[int]) -> Facts:
    shutil.rmtree(staging / CHECKPOINTS, ignore_errors=True)
    return {**_facts(staging), "resumed_from": list(resumed_from)}


def _facts(staging: Path) -> Facts:
    """The last of every value in the history, and the last step."""
    facts: Facts = {}
    for line in (staging / HISTORY).read_text().splitlines():
        facts |= json.loads(line)
    return {"steps": facts.pop("step"), **facts}


def _spec(job: TrainJob) -> ModelSpec:
    config = job.config
    return ModelSpec(
        network=config.network,
        activation="sigmoid" if config.loss == "bce" else "softmax",
        patch_size=config.patch_size,
        window_hu=config.window_hu,
        ingest=job.ingest,
        data_key=job.data_key,
    )
