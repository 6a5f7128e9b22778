"""Networks by name, with weights that depend on the seed alone."""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from liverseg_core.arrays import Shape
from liverseg_core.classes import CLASSES
from liverseg_core.config import NetworkConfig
from liverseg_core.errors import LiversegError
from liverseg_core.models.ahnet import AHNet
from liverseg_core.models.resenc import ResEncUNet
from liverseg_core.models.unet import UNet

AHNET_BLOCKS = (3, 4, 6, 3)
RESENC_BLOCKS = (1, 3, 4, 6)
"""Levels below the last of these have as many blocks as it."""


def build_network(config: NetworkConfig, seed: int = 0) -> nn.Module:
    """Build a network from one CT channel to one logit per class.

    In training, networks with deep supervision give a list: full size first, each half the one before.

    Args:
        config: Which network, and its size.
        seed: Decides the initial weights; the global random state is left as it was.

    Example:
        >>> network = build_network(NetworkConfig(channels=(4, 8)))
        >>> tuple(network(torch.zeros(1, 1, 16, 16, 8)).shape)
        (1, 3, 16, 16, 8)
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs as well
        kind, arguments = network_class(config)
        return kind(**arguments)


def network_class(config: NetworkConfig) -> tuple[type[nn.Module], dict[str, Any]]:
    """The class of a network and its arguments."""
    sizes: dict[str, Any] = {"classes": len(CLASSES)}
    if config.name == "ahnet":
        blocks = config.blocks or AHNET_BLOCKS
        return AHNet, {
            **sizes, "blocks": blocks, "psp_blocks": config.psp_blocks, "upsample": config.upsample,
        }  # fmt: skip
    sizes |= {"channels": config.channels, "norm": config.norm}
    if config.name == "unet":
        return UNet, {**sizes, "residual_units": config.residual_units}
    levels = len(config.channels)
    blocks = RESENC_BLOCKS[:levels] + RESENC_BLOCKS[-1:] * (levels - len(RESENC_BLOCKS))
    return ResEncUNet, {**sizes, "blocks": config.blocks or blocks}


class Ensemble(nn.Module):
    """Networks whose probabilities are averaged, as one that gives logits.

    Args:
        members: Networks with the same output.
        activation: What makes probabilities of their logits.

    Example:
        >>> network = build_network(NetworkConfig(channels=(4, 8))).eval()
        >>> x = torch.randn(1, 1, 8, 8, 8)
        >>> both = torch.softmax(Ensemble([network, network], "softmax")(x), 1)
        >>> torch.allclose(both, torch.softmax(network(x), 1), atol=1e-6)
        True
    """

    def __init__(self, members: Sequence[nn.Module], activation: Literal["softmax", "sigmoid"]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.activation = activation

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (b, classes, x, y, z) whose activation is the members' mean probability."""
        normalise = torch.sigmoid if self.activation == "sigmoid" else functools.partial(torch.softmax, dim=1)
        mean = torch.stack([normalise(member(image).float()) for member in self.members]).mean(0)
        tiny = torch.finfo(mean.dtype).tiny
        return torch.logit(mean, eps=1e-7) if self.activation == "sigmoid" else mean.clamp_min(tiny).log()


def check_patch_size(config: NetworkConfig, patch_size: Shape, batch_size: int) -> None:
    """Refuse patches that the network cannot take, before anything is read.

    Args:
        config: The network.
        patch_size: Of training and inference windows, in voxels.
        batch_size: Patches that go through the network at once.

    Raises:
        LiversegError: LS273.

    Example:
        >>> check_patch_size(NetworkConfig(name="ahnet", psp_blocks=2), (96, 96, 96), 2)
    """
    divisors, least = _grid(config)
    fits = all(n % by == 0 and n >= low for n, by, low in zip(patch_size, divisors, least, strict=True))
    # norms need more than one value a channel at the lowest level: of the whole batch, or of each patch
    halvings = 5 if config.name == "ahnet" else len(config.channels) - 1
    alone = config.name != "ahnet" and config.norm == "instance"
    values = math.prod(n >> halvings for n in patch_size) * (1 if alone else batch_size)
    if fits and values > 1:
        return
    allowed = f"x, y, z that divide by {divisors}"
    if any(low > by for low, by in zip(least, divisors, strict=True)):
        allowed += f", at least {least}"
    if fits:
        allowed += ", with more than one voxel left at the lowest level"
    raise LiversegError(
        "LS273",
        f"train.patch_size {tuple(patch_size)} does not fit {config.name}",
        allowed,
        "Change train.patch_size" + (", or lower train.network.psp_blocks" * (config.name == "ahnet")),
    )


def _grid(config: NetworkConfig) -> tuple[Shape, Shape]:
    """What each axis of a patch must divide by, and its least size."""
    if config.name != "ahnet":
        factor = 2 ** (len(config.channels) - 1)
        return (factor,) * 3, (factor,) * 3
    pooled = 2 ** (config.psp_blocks + 3) if config.psp_blocks else 1
    if config.upsample == "transpose":
        pooled = max(32, pooled)
        return (pooled, pooled, 32), (pooled, pooled, 32)
    return (32, 32, 32), (max(32, pooled), max(32, pooled), 32)
