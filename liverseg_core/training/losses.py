"""What training minimises, and the overlaps it shows on the way."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float32, Float64, UInt8
from torch import Tensor, distributed
from torch.nn import functional

from liverseg_core.classes import CLASSES
from liverseg_core.config import TrainConfig
from liverseg_core.errors import LiversegError

Logits = Float32[Tensor, "b c x y z"]
Labels = UInt8[Tensor, "b x y z"]
Loss = Callable[[Sequence[Logits], Labels], Tensor]

SMOOTH = 1e-5
COUNTS = 6
"""How many sums `count` makes."""


def build_loss(config: TrainConfig) -> Loss:
    """The loss of a list of logits, full size first and each half the one before, against labels.

    Smaller logits count half as much each, against labels taken at every second, fourth … voxel.
    """
    of_level: Callable[[Tensor, Tensor], Tensor]
    if config.loss == "bce":
        of_level = functional.binary_cross_entropy_with_logits
    else:
        of_level = _dice_ce(config.batch_dice, with_ce=config.loss == "dice_ce")

    def loss(outputs: Sequence[Logits], label: Labels) -> Tensor:
        weights = [0.5**level for level in range(len(outputs))]
        losses = [
            weight * of_level(logits.float(), one_hot(_every(label, 2**level)))
            for level, (weight, logits) in enumerate(zip(weights, outputs, strict=True))
        ]
        return torch.stack(losses).sum() / sum(weights)

    return loss


def one_hot(label: Labels) -> Tensor:
    """Labels as (b, classes, x, y, z) float32, on which losses are deterministic."""
    classes = torch.arange(len(CLASSES), device=label.device, dtype=label.dtype)
    return (label[:, None] == classes.view(1, -1, 1, 1, 1)).float()


def soft_dice(probabilities: Tensor, y: Tensor, batch: bool) -> Tensor:
    """The mean Dice of the classes, background among them: of all patches together, or the mean of each's.

    All patches means those of every training process: with the mean of all processes' gradients, weights move
    as they would if one process had the whole batch.
    """
    axes = (0, 2, 3, 4) if batch else (2, 3, 4)
    sums = torch.stack([(probabilities * y).sum(axes), probabilities.sum(axes) + y.sum(axes)])
    if batch and distributed.is_initialized():
        sums = _OverProcesses.apply(sums)  # type: ignore[no-untyped-call]
    overlap, size = sums
    dice: Tensor = (2 * overlap + SMOOTH) / (size + SMOOTH)
    return dice.mean()


def count(loss: Tensor, logits: Logits, label: Labels) -> Float64[Tensor, "6"]:
    """Sums that add up over steps and processes: 1, loss, overlap and sizes of liver and of tumour."""
    # comparisons, since argmax over three channels takes as long as the network itself on a CPU
    liver = logits[:, 1:].amax(1) > logits[:, 0], label > 0
    tumour = logits[:, 2] > logits[:, :2].amax(1), label == 2
    sums = [torch.ones_like(loss), loss]
    for predicted, actual in (liver, tumour):
        sums += [(predicted & actual).sum(), predicted.sum() + actual.sum()]
    return torch.stack([value.double() for value in sums])


def means(counts: Float64[Tensor, "6"], step: int) -> Mapping[str, float]:
    """What `count` counted, as mean loss and Dice over all voxels; no Dice of what was nowhere.

    Raises:
        LiversegError: LS272 when the loss stopped being a number before this step.
    """
    number, loss, *overlaps = counts.tolist()
    if not math.isfinite(loss):
        raise LiversegError(
            "LS272",
            f"the loss is no longer a number at step {step}",
            "a finite loss",
            "Lower train.learning_rate or train.gradient_clip, or train with train.precision fp32",
        )
    values = {"loss": loss / number}
    for name, overlap, size in (("dice_liver", *overlaps[:2]), ("dice_tumour", *overlaps[2:])):
        if size:
            values[name] = 2 * overlap / size
    return values


class _OverProcesses(torch.autograd.Function):
    """The sum over all training processes: every loss depends on every process's part."""

    @staticmethod
    def forward(_ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


def _dice_ce(batch: bool, with_ce: bool) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(logits: Tensor, y: Tensor) -> Tensor:
        logarithms = logits.log_softmax(1)
        dice = 1 - soft_dice(logarithms.exp(), y, batch)
        return dice - (y * logarithms).sum(1).mean() if with_ce else dice

    return loss


def _every(label: Labels, step: int) -> Labels:
    """One voxel from the middle of each block of `step` voxels a side."""
    first = (step - 1) // 2
    return label[:, first::step, first::step, first::step]
