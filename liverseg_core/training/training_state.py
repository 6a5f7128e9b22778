"""All that training changes, and its way through a checkpoint and back."""

import copy
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from liverseg_core.config import ComputeConfig
from liverseg_core.models.model import load_weights
from liverseg_core.models.networks import build_network
from liverseg_core.training.checkpoint import Checkpoint, load_latest, random_state, restore_random_state
from liverseg_core.training.losses import COUNTS
from liverseg_core.training.optimisation import build_optimiser, load_optimiser
from liverseg_core.training.train_job import TrainJob

_logger = logging.getLogger(__name__)


@dataclass
class State:
    """All that training changes."""

    network: nn.Module
    average: nn.Module | None
    """The moving average of the weights, where the recipe has one."""
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    """Keeps small gradients in fp16; does nothing otherwise."""
    totals: torch.Tensor
    """What `losses.count` counted in this process since values were last logged."""
    step: int = 0
    validated: int = 0
    """The step after which validation last ended."""
    best: float = -1.0
    stale: int = 0
    """Validations since the best."""
    history: list[str] = field(default_factory=list)
    """Lines of the history file: a checkpoint is enough to go on from, wherever it is copied to."""
    resumed_from: list[int] = field(default_factory=list)
    """Steps that were gone on from."""

    @property
    def chosen(self) -> nn.Module:
        """What is validated and becomes the model."""
        return self.network if self.average is None else self.average

    def checkpoint(self, data_key: str, totals: torch.Tensor) -> Checkpoint:
        """A checkpoint to go on from; `totals` of all processes."""
        stored: dict[str, Any] = {name: getattr(self, name) for name in _PLAIN}
        stored |= {name: getattr(self, name).state_dict() for name in ("network", "optimiser", "scaler")}
        if self.average is not None:
            stored["average"] = self.average.state_dict()
        stored |= {"totals": totals, "random": random_state(self.totals.device)}
        return Checkpoint(self.step, data_key, stored)

    def restore(self, checkpoint: Checkpoint, first: bool) -> None:
        """Bring everything back, from whatever device; sums of all processes go to the first one."""
        stored, self.step = checkpoint.state, checkpoint.step
        for name in _PLAIN:
            setattr(self, name, stored[name])
        for name in ("network", "scaler"):
            getattr(self, name).load_state_dict(stored[name])
        load_optimiser(self.optimiser, stored["optimiser"])
        if self.average is not None:
            self.average.load_state_dict(stored["average"])
        if first:
            self.totals.copy_(stored["totals"])
        restore_random_state(stored["random"], self.totals.device)


def memory_format(compute: ComputeConfig, device: torch.device) -> torch.memory_format:
    """How network and patches lie in memory."""
    last = device.type == "cuda" if compute.channels_last is None else compute.channels_last
    return torch.channels_last_3d if last else torch.contiguous_format


_PLAIN = ("validated", "best", "stale", "history", "resumed_from")


def begin(job: TrainJob, checkpoints: Path, device: torch.device, first: bool) -> State:
    """The state to train on from: of the last whole checkpoint, else of `start_from`, else of the seed.

    Args:
        job: What to train.
        checkpoints: Where they are.
        device: Where to train.
        first: Whether this is the process that speaks for all.

    Raises:
        LiversegError: LS531, LS532 for checkpoints; LS274 and those of `load_model` for `start_from`.
    """
    config = job.config
    if first and config.precision != "fp32" and not _multiplies_halves(device):
        _logger.warning(
            "convolutions in %s take many times as long on this CPU: set train.precision=fp32",
            config.precision,
        )
    torch.manual_seed(config.seed)
    network = build_network(config.network, config.seed)
    found = load_latest(checkpoints, job.data_key, _logger.warning if first else lambda _: None)
    if found is None and job.start_from is not None:
        load_weights(job.start_from, network, config.network)
    network.to(device, memory_format=memory_format(job.compute, device))  # type: ignore[call-overload]
    state = State(
        network,
        copy.deepcopy(network).eval() if config.ema else None,
        build_optimiser(config, network),
        torch.amp.GradScaler(device.type, enabled=config.precision == "fp16"),
        torch.zeros(COUNTS, dtype=torch.float64, device=device),
    )
    if found is not None:
        state.restore(found, first)
        state.resumed_from = [*state.resumed_from, found.step]
        _logger.info("going on from step %d of %d", found.step, config.steps)
    return state


def _multiplies_halves(device: torch.device) -> bool:
    """Whether 16 bits are fast; on a CPU with AVX2 alone a convolution took 57 times as long as in fp32."""
    return device.type != "cpu" or "AVX512" in torch.backends.cpu.get_cpu_capability()
