"""A U-Net with a residual encoder, one convolution per decoder level, and deep supervision.

Most of its work is in the encoder, as in the residual-encoder presets of nnU-Net (arXiv 2404.09556). Plain
torch alone, so that a benchmark can train the very same network elsewhere.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

NORMS = {"instance": nn.InstanceNorm3d, "batch": nn.BatchNorm3d}


class ResEncUNet(nn.Module):
    """One CT channel to logits; in training a list of them, full size first, each half the one before.

    Args:
        classes: Logits per voxel.
        channels: Features of each level.
        blocks: Residual blocks of each level.
        norm: `instance` or `batch`.
    """

    def __init__(self, classes: int, channels: Sequence[int], blocks: Sequence[int], norm: str) -> None:
        super().__init__()
        self.stem = _unit(1, channels[0], norm)
        widths = [channels[0], *channels]
        self.encoder = nn.ModuleList(
            nn.Sequential(
                _Block(widths[i], channels[i], 2 if i else 1, norm),
                *(_Block(channels[i], channels[i], 1, norm) for _ in range(blocks[i] - 1)),
            )
            for i in range(len(channels))
        )
        pairs = list(itertools.pairwise(channels))
        self.up = nn.ModuleList(nn.ConvTranspose3d(deep, shallow, 2, 2) for shallow, deep in pairs)
        self.decoder = nn.ModuleList(_unit(2 * shallow, shallow, norm) for shallow, _ in pairs)
        # the coarsest decoder level says too little to be supervised, unless it is the only one
        self.heads = nn.ModuleList(nn.Conv3d(c, classes, 1) for c in channels[: max(1, len(pairs) - 1)])
        self.apply(_initialise)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Logits of a batch (b, 1, x, y, z)."""
        x, skips = self.stem(x), []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
        outputs: list[torch.Tensor] = []
        for i in reversed(range(len(self.up))):
            x = self.decoder[i](torch.cat((self.up[i](x), skips[i]), 1))
            if i == 0 or (self.training and i < len(self.heads)):
                outputs.insert(0, self.heads[i](x))
        return outputs if self.training else outputs[0]


class _Block(nn.Module):
    """Two convolutions beside an identity; where sizes change, the identity is pooled and projected."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str) -> None:
        super().__init__()
        self.first = _unit(inputs, outputs, norm, stride)
        self.second = nn.Sequential(
            nn.Conv3d(outputs, outputs, 3, padding=1), NORMS[norm](outputs, affine=True)
        )
        pooled = [nn.AvgPool3d(stride)] if stride > 1 else []
        projected = [nn.Conv3d(inputs, outputs, 1, bias=False), NORMS[norm](outputs, affine=True)]
        self.beside = nn.Sequential(*pooled, *(projected if inputs != outputs else []))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.leaky_relu(self.second(self.first(x)) + self.beside(x), 0.01, inplace=True)


def _unit(inputs: int, outputs: int, norm: str, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, stride, 1), NORMS[norm](outputs, affine=True), nn.LeakyReLU(0.01, True)
    )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
