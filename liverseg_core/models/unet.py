"""A U-Net of strided convolutions, with shortcuts or without: MONAI's `UNet` as our settings allow it.

Equal to that of MONAI 1.6.1 bit for bit: names and order of its weights, the weights of a seed, outputs and
gradients. So a model that MONAI's class was trained in is one of this. Plain torch alone, since importing
MONAI costs seconds and hundreds of megabytes.

Source: Kerfoot et al., Left-Ventricle Quantification Using Residual U-Net, STACOM 2018.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

NORMS = {"instance": nn.InstanceNorm3d, "batch": nn.BatchNorm3d}


class UNet(nn.Module):
    """One CT channel to logits.

    Args:
        classes: Logits per voxel.
        channels: Features of each level; each level below the first halves every axis.
        residual_units: Convolutions beside each shortcut on the way down; 0: no shortcuts.
        norm: `instance` or `batch`.
    """

    def __init__(self, classes: int, channels: Sequence[int], residual_units: int, norm: str) -> None:
        super().__init__()
        self.model = _level((1, classes), channels, residual_units, norm, top=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of a batch (b, 1, x, y, z)."""
        logits: torch.Tensor = self.model(x)
        return logits


def _level(
    ends: tuple[int, int], channels: Sequence[int], residual_units: int, norm: str, top: bool = False
) -> nn.Sequential:
    """A way down, all the levels below, and the way up. Made from the bottom up: that orders a seed's draws.

    Args:
        ends: Channels of what comes and of what is given.
        channels: Features of this level and of those below.
        residual_units: As of the network.
        norm: As of the network.
        top: Whether what is given are logits, which no norm and no activation follow.
    """
    width, below = channels[0], channels[1]
    if len(channels) > 2:
        deeper: nn.Module = _level((width, width), channels[1:], residual_units, norm)
        below = width
    else:
        deeper = _encoder(width, below, 1, residual_units, norm)
    down = _encoder(ends[0], width, 2, residual_units, norm)
    up: nn.Module = _convolution(width + below, ends[1], norm, up=True, bare=top and not residual_units)
    if residual_units:
        up = nn.Sequential(up, _ResidualUnit((ends[1], ends[1]), 1, 1, norm, bare=top))
    return nn.Sequential(down, _Beside(deeper), up)


def _encoder(inputs: int, outputs: int, stride: int, residual_units: int, norm: str) -> nn.Module:
    if residual_units:
        return _ResidualUnit((inputs, outputs), stride, residual_units, norm)
    return _convolution(inputs, outputs, norm, stride)


class _Beside(nn.Module):
    """What comes, and beside it what a module makes of it."""

    def __init__(self, submodule: nn.Module) -> None:
        super().__init__()
        self.submodule = submodule

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x, self.submodule(x)), 1)


class _ResidualUnit(nn.Module):
    """Convolutions, the first of them strided, and a shortcut that projects where sizes change."""

    def __init__(
        self, ends: tuple[int, int], stride: int, convolutions: int, norm: str, bare: bool = False
    ) -> None:
        super().__init__()
        inputs, outputs = ends
        units = OrderedDict[str, nn.Module]()
        for i in range(convolutions):
            given, by = (outputs, 1) if i else (inputs, stride)
            units[f"unit{i}"] = _convolution(given, outputs, norm, by, bare=bare and i == convolutions - 1)
        self.conv = nn.Sequential(units)
        self.residual: nn.Module = nn.Identity()
        if stride > 1:
            self.residual = nn.Conv3d(inputs, outputs, 3, stride, 1)
        elif inputs != outputs:
            self.residual = nn.Conv3d(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        beside: torch.Tensor = self.residual(x)
        inner: torch.Tensor = self.conv(x)
        return inner + beside


def _convolution(
    inputs: int, outputs: int, norm: str, stride: int = 1, *, up: bool = False, bare: bool = False
) -> nn.Sequential:
    """A convolution with a norm and an activation; `up` doubles every axis, `bare` is without these two."""
    convolution = (
        nn.ConvTranspose3d(inputs, outputs, 3, 2, 1, output_padding=1)
        if up
        else nn.Conv3d(inputs, outputs, 3, stride, 1)
    )
    parts = OrderedDict[str, nn.Module](conv=convolution)
    if not bare:
        parts["adn"] = nn.Sequential(OrderedDict[str, nn.Module](N=NORMS[norm](outputs), A=nn.PReLU()))
    return nn.Sequential(parts)
