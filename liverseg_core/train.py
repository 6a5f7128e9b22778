"""Training, top to bottom: patches in, checkpoints on the way, a model folder out.

On one machine the weights depend on the config and the cases alone: a run that is killed and started again
ends with the same bits as one that was not.
"""

import contextlib
import json
import logging
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

import torch
from monai.losses import DiceCELoss
from torch import nn

from liverseg_core.artifact import Facts
from liverseg_core.checkpoint import (
    Checkpoint,
    load_latest,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from liverseg_core.config import ComputeConfig, IngestConfig, TrainConfig
from liverseg_core.durable import write_atomically
from liverseg_core.errors import Interrupted, LiversegError
from liverseg_core.model import SPEC, ModelSpec, pick_device, save_model
from liverseg_core.networks import build_network
from liverseg_core.patches import PatchDataset, patch_stream
from liverseg_core.store import CLASSES, open_case

HISTORY = "history.jsonl"
CHECKPOINTS = "checkpoints"
Values = Mapping[str, float]
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainJob:
    """One training.

    Args:
        cases: Folders of labelled, ingested cases.
        config: The recipe.
        ingest: How the cases were made; the model remembers it, to prepare a scan the same way.
        compute: Where and how fast; changes no bit of the result on the same machine.
        data_key: Names the data in checkpoints and in the model.
        progress: Told (step, steps) after every step.
    """

    cases: Sequence[Path]
    config: TrainConfig
    ingest: IngestConfig
    compute: ComputeConfig
    data_key: str
    progress: Callable[[int, int], None] = field(default=lambda _step, _steps: None)


def train(job: TrainJob, staging: Path, log: Callable[[int, Values], None]) -> Facts:
    """Train a model, going on from the last checkpoint in `staging` if there is one.

    Args:
        job: What to train on what.
        staging: Receives `model.safetensors`, `model.json` and `history.jsonl`.
        log: Told every `log_every` steps the means since it was last told; `patches_per_s` is in no file.

    Raises:
        Interrupted: On SIGTERM and SIGINT, after saving a checkpoint.
        LiversegError: LS371, LS372 for cases that cannot be trained on; LS531, LS532 for checkpoints that
            cannot be gone on from; LS271 for the device; LS272 when the loss stops being a number.
    """
    config = job.config
    if (staging / SPEC).exists():  # killed after the model's last file, before the artifact was committed
        return _finish(staging, [config.steps])

    device = pick_device(job.compute.device)
    torch.manual_seed(config.seed)
    network = build_network(config.network, config.seed)
    network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    state = _State(network, _optimiser(config, network), torch.zeros(6, dtype=torch.float64, device=device))
    loss_of = _loss(config)
    # Loader workers would each hold all volumes; the operating system's cache serves them instead.
    resident_mb = 0 if job.compute.loader_workers else job.compute.resident_mb
    dataset = PatchDataset([open_case(path) for path in job.cases], config, resident_mb)
    step, resumed_from = _resume(job, state, staging)

    with _deterministic(), _stop_signal() as stopped, (staging / HISTORY).open("a") as history:
        stream = patch_stream(dataset, range(step, config.steps), config.batch_size, job.compute)
        lap_step, lap_start = step, time.monotonic()
        for image, label in stream:
            for group in state.optimiser.param_groups:
                group["lr"] = learning_rate(config, step)
            x = image.to(device, non_blocking=True, memory_format=torch.channels_last_3d)
            y = one_hot(label.to(device, non_blocking=True))
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                logits = network(x)
            loss = loss_of(logits.float(), y)
            state.optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            if config.gradient_clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clip)
            state.optimiser.step()
            state.totals.add_(_count(loss.detach(), logits.detach(), y))
            step += 1

            job.progress(step, config.steps)
            last, stop = step == config.steps, stopped[:1]  # looked at once: a signal comes at any moment
            if step % config.log_every == 0 or last:
                values = {**_means(state.totals, step), "learning_rate": learning_rate(config, step - 1)}
                state.totals.zero_()
                history.write(json.dumps({"step": step, **values}) + "\n")
                rate = (step - lap_step) * config.batch_size / (time.monotonic() - lap_start)
                log(step, {**values, "patches_per_s": rate})
                lap_step, lap_start = step, time.monotonic()
            if step % config.checkpoint_every == 0 or last or stop:
                _sync(history)
                stored = {**state.stored(), "resumed_from": resumed_from}
                save_checkpoint(staging / CHECKPOINTS, Checkpoint(step, job.data_key, stored))
            if stop:
                raise Interrupted(stop[0], f"training stopped at step {step} of {config.steps}")

    save_model(staging, network, _spec(job))
    return _finish(staging, resumed_from)


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of a step: a linear warm-up, then constant or half a cosine down to nothing."""
    warm = min(1.0, (step + 1) / (config.warmup + 1))
    if config.schedule == "constant":
        return config.learning_rate * warm
    return config.learning_rate * warm * (1 + math.cos(math.pi * step / config.steps)) / 2


def one_hot(label: torch.Tensor) -> torch.Tensor:
    """Labels (b, x, y, z) as (b, classes, x, y, z) float32, on which losses are deterministic."""
    classes = torch.arange(len(CLASSES), device=label.device, dtype=label.dtype)
    return (label[:, None] == classes.view(1, -1, 1, 1, 1)).float()


@dataclass(frozen=True)
class _State:
    """All that a step changes."""

    network: nn.Module
    optimiser: torch.optim.Optimizer
    totals: torch.Tensor
    """What `_count` counted since values were last logged."""

    def stored(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "totals": self.totals,
            "random": random_state(),
        }

    def restore(self, stored: Mapping[str, Any]) -> None:
        self.network.load_state_dict(stored["network"])
        self.optimiser.load_state_dict(stored["optimiser"])
        self.totals.copy_(stored["totals"])
        restore_random_state(stored["random"])


def _resume(job: TrainJob, state: _State, staging: Path) -> tuple[int, list[int]]:
    """Bring everything back to the last checkpoint; steps done, and every step that was gone on from."""
    found = load_latest(staging / CHECKPOINTS, job.data_key, _logger.warning)
    step, resumed_from = 0, []
    if found is not None:
        state.restore(found.state)
        step, resumed_from = found.step, [*found.state["resumed_from"], found.step]
        _logger.info("going on from step %d of %d", step, job.config.steps)
    _cut_history(staging / HISTORY, step)
    return step, resumed_from


def _optimiser(config: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimiser]
    optimiser: torch.optim.Optimizer = kind(network.parameters(), lr=config.learning_rate)
    return optimiser


def _loss(config: TrainConfig) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    if config.loss == "bce":
        return nn.BCEWithLogitsLoss()
    loss: nn.Module = DiceCELoss(softmax=True, batch=True)
    return loss


def _count(loss: torch.Tensor, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Sums that add up over steps: 1, loss, and overlap and sizes of liver (with tumour) and of tumour."""
    # comparisons, since argmax over three channels takes as long as the network itself on a CPU
    liver = logits[:, 1:].amax(1) > logits[:, 0], y[:, 0] == 0
    tumour = logits[:, 2] > logits[:, :2].amax(1), y[:, 2] == 1
    sums = [torch.ones_like(loss), loss]
    for predicted, actual in (liver, tumour):
        sums += [(predicted & actual).sum(), predicted.sum() + actual.sum()]
    return torch.stack([value.double() for value in sums])


def _means(totals: torch.Tensor, step: int) -> dict[str, float]:
    steps, loss, *counts = totals.tolist()
    if not math.isfinite(loss):
        raise LiversegError(
            "LS272",
            f"the loss is no longer a number at step {step}",
            "a finite loss",
            "Lower train.learning_rate or train.gradient_clip, or train with train.precision fp32",
        )
    values = {"loss": loss / steps}
    for name, overlap, size in (("dice_liver", *counts[:2]), ("dice_tumour", *counts[2:])):
        if size:
            values[name] = 2 * overlap / size
    return values


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


def _finish(staging: Path, resumed_from: list[int]) -> Facts:
    """Leave only files that are the same however often training was interrupted."""
    shutil.rmtree(staging / CHECKPOINTS, ignore_errors=True)
    final = json.loads((staging / HISTORY).read_text().splitlines()[-1])
    return {"steps": final.pop("step"), "resumed_from": resumed_from, **final}


def _cut_history(path: Path, step: int) -> None:
    """Keep the lines up to a checkpoint; those after it will be written again."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = (line for line in lines if line.endswith(b"\n"))  # a kill can leave half a line
    write_atomically(path, b"".join(line for line in whole if json.loads(line)["step"] <= step))


def _sync(file: IO[str]) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Deterministic kernels where there are any."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


@contextlib.contextmanager
def _stop_signal() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying of them; only the main thread may ask for that."""
    stopped: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        stopped.append(number)

    main = threading.current_thread() is threading.main_thread()
    before: dict[signal.Signals, Any] = {
        number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT) if main
    }
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
