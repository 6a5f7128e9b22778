"""How weights move: optimisers, the learning rate of each step, the moving average of the weights."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from liverseg_core.config import TrainConfig

POLY_EXPONENT = 0.9


def build_optimiser(config: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a recipe; `learning_rate` is for each step to set."""
    parameters = list(network.parameters())
    shared: dict[str, Any] = {
        "lr": config.learning_rate,
        "weight_decay": config.weight_decay,
        "fused": one_kernel(network),
    }
    if config.optimiser == "sgd":
        momentum = config.momentum
        return torch.optim.SGD(parameters, momentum=momentum, nesterov=momentum > 0, **shared)
    if config.optimiser == "adam":
        return torch.optim.Adam(parameters, **shared)
    return torch.optim.AdamW(parameters, **shared)


def one_kernel(network: nn.Module) -> bool:
    """Whether one kernel moves all weights, instead of hundreds: torch's `fused`."""
    return next(network.parameters()).is_cuda


def load_optimiser(optimiser: torch.optim.Optimizer, stored: Mapping[str, Any]) -> None:
    """Bring an optimiser's state back, wherever and in whatever order of memory it was saved.

    Both would otherwise come with it: `fused` as on the device of that time, and strides that are not the
    weights' now. A fused kernel goes through memory without looking at strides, and trains wrong weights.

    Args:
        optimiser: Of weights that lie where and as they will be trained.
        stored: What `state_dict` of an optimiser of the same kind gave.
    """
    pairs = zip(stored["param_groups"], optimiser.param_groups, strict=True)
    groups = [{**theirs, "fused": mine["fused"]} for theirs, mine in pairs]
    optimiser.load_state_dict({**stored, "param_groups": groups})
    for weight, state in optimiser.state.items():
        for name, value in state.items():
            if name != "step" and torch.is_tensor(value) and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight, requires_grad=False).copy_(value)


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of a step: a linear warm-up, and constant, or down to nothing by cosine or power."""
    warm = min(1.0, (step + 1) / (config.warmup + 1))
    falling = {
        "constant": 1.0,
        "cosine": (1 + math.cos(math.pi * step / config.steps)) / 2,
        "poly": math.pow(1 - step / config.steps, POLY_EXPONENT),
    }
    return config.learning_rate * warm * falling[config.schedule]


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move an average of the weights, norm statistics among them, towards the network's.

    The first steps move it faster, so that it soon forgets the weights that training began with.
    """
    decay = min(decay, (1 + step) / (10 + step))
    pairs = list(zip(average.state_dict().values(), network.state_dict().values(), strict=True))
    moving = [(mine, theirs) for mine, theirs in pairs if mine.is_floating_point()]
    torch._foreach_lerp_([mine for mine, _ in moving], [theirs for _, theirs in moving], 1 - decay)
    for mine, theirs in pairs:
        if not mine.is_floating_point():  # how many batches a norm has seen
            mine.copy_(theirs)
