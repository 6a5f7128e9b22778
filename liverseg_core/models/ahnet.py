"""The anisotropic hybrid network: a ResNet-50 encoder of flat 3 × 3 × 1 kernels and a dense 3D decoder.

MONAI's `AHNet` as our settings allow it, equal to that of MONAI 1.6.1 bit for bit: names and order of its
weights, the weights of a seed, outputs and gradients. So a model that MONAI's class was trained in is one of
this. Plain torch alone, since importing MONAI costs seconds and hundreds of megabytes.

Source: Liu et al., 3D Anisotropic Hybrid Network, arXiv 1711.08580.
"""

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

STEM = 64
WIDTHS = (64, 128, 256, 512)
"""Of each encoder level's inner convolutions."""
EXPANSION = 4
"""A level gives so many times its width."""
GROWTH, DENSE_LAYERS = 20, 3
"""Features that a dense layer adds, and layers of a dense block."""
INNER = 4 * GROWTH


class AHNet(nn.Module):
    """One CT channel to logits.

    Args:
        classes: Logits per voxel.
        blocks: Residual blocks of each of the four encoder levels.
        psp_blocks: Scales of the pyramid pooling at the end, up to 4; 0: none.
        upsample: `transpose`, `trilinear` or `nearest`.
    """

    def __init__(self, classes: int, blocks: Sequence[int], psp_blocks: int, upsample: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(1, STEM, (7, 7, 3), (2, 2, 1), (3, 3, 1), bias=False)
        self.pool1 = nn.MaxPool3d((1, 1, 2))
        self.bn0 = nn.BatchNorm3d(STEM)
        self.relu = nn.ReLU(inplace=True)
        # Windows that overlap would make its gradient depend on the order of sums: CUDA adds atomically, and
        # torch calls all max pooling non-deterministic there. Without overlap each voxel gets one addend.
        self.maxpool = nn.MaxPool3d(3, 2, 1) if upsample == "trilinear" else nn.MaxPool3d(2)

        outputs = [width * EXPANSION for width in WIDTHS]
        self.layer1 = _encoder_level(STEM, WIDTHS[0], blocks[0], stride=1)
        self.layer2 = _encoder_level(outputs[0], WIDTHS[1], blocks[1])
        self.layer3 = _encoder_level(outputs[1], WIDTHS[2], blocks[2])
        self.layer4 = _encoder_level(outputs[2], WIDTHS[3], blocks[3])

        self.up0 = _up(outputs[3], outputs[2], upsample)
        self.dense0 = _dense_block(outputs[2])
        self.up1 = _up(_grown(outputs[2]), outputs[1], upsample)
        self.dense1 = _dense_block(outputs[1])
        self.up2 = _up(_grown(outputs[1]), outputs[0], upsample)
        self.dense2 = _dense_block(outputs[0])
        self.trans1 = _projection(_grown(outputs[0]), STEM)
        self.dense3 = _dense_block(STEM)
        self.up3 = _up(_grown(STEM), STEM, upsample)
        self.dense4 = _dense_block(STEM)
        self.psp = _Pyramid(_grown(STEM), psp_blocks, upsample)
        self.final = _up(_grown(STEM) + psp_blocks, classes, upsample, kernel=(3, 3, 1))
        for module in self.modules():
            _initialise(module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of a batch (b, 1, x, y, z)."""
        stem = self.relu(self.bn0(self.pool1(self.conv1(x))))
        pooled = self.maxpool(stem)
        first = self.layer1(pooled)
        second = self.layer2(first)
        third = self.layer3(second)
        x = self.layer4(third)
        x = self.dense0(self.up0(x) + third)
        x = self.dense1(self.up1(x) + second)
        x = self.dense2(self.up2(x) + first)
        x = self.dense3(self.trans1(x) + pooled)
        x = self.dense4(self.up3(x) + stem)
        logits: torch.Tensor = self.final(self.psp(x))
        return logits


def _grown(features: int) -> int:
    """What a dense block makes of so many."""
    return features + DENSE_LAYERS * GROWTH


def _encoder_level(inputs: int, width: int, blocks: int, stride: int = 2) -> nn.Sequential:
    first = _Bottleneck(inputs, width, stride)
    return nn.Sequential(first, *(_Bottleneck(width * EXPANSION, width) for _ in range(blocks - 1)))


class _Bottleneck(nn.Module):
    """A residual block of flat kernels. With a stride, x and y are strided and z is pooled."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs, flat, along_z = width * EXPANSION, (stride, stride, 1), (1, 1, stride)
        beside: nn.Module = nn.Identity()
        if inputs != outputs:  # made first: that orders a seed's draws
            projected = nn.Conv3d(inputs, outputs, 1, flat, bias=False)
            beside = nn.Sequential(projected, nn.MaxPool3d(along_z), nn.BatchNorm3d(outputs))
        self.conv1 = nn.Conv3d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, (3, 3, 1), flat, (1, 1, 0), bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = beside
        self.pool = nn.MaxPool3d(along_z) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.relu(self.bn1(self.conv1(x)))
        inner = self.relu(self.bn2(self.conv2(inner)))
        inner = self.pool(self.bn3(self.conv3(inner)))
        inner += self.downsample(x)
        activated: torch.Tensor = self.relu(inner)
        return activated


def _projection(inputs: int, outputs: int, kernel: tuple[int, int, int] = (1, 1, 1)) -> nn.Sequential:
    x, y, z = (size // 2 for size in kernel)
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            norm=nn.BatchNorm3d(inputs),
            relu=nn.ReLU(inplace=True),
            conv=nn.Conv3d(inputs, outputs, kernel, padding=(x, y, z), bias=False),
        )
    )


def _up(inputs: int, outputs: int, mode: str, kernel: tuple[int, int, int] = (1, 1, 1)) -> nn.Sequential:
    """A projection, then every axis doubled."""
    parts = _projection(inputs, outputs, kernel)
    if mode == "transpose":
        parts.add_module("up", nn.ConvTranspose3d(outputs, outputs, 2, 2, bias=False))
    else:
        parts.add_module("up", nn.Upsample(scale_factor=2, mode=mode, align_corners=_corners(mode)))
    return parts


def _corners(mode: str) -> bool | None:
    return True if mode == "trilinear" else None


def _dense_block(inputs: int) -> nn.Sequential:
    layers = OrderedDict[str, nn.Module]()
    for i in range(DENSE_LAYERS):
        layers[f"denselayer{i + 1}"] = _DenseLayer(inputs + i * GROWTH)
    return nn.Sequential(layers)


class _DenseLayer(nn.Module):
    """Appends features: a flat convolution, and one along z of it, added."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm3d(inputs)
        self.conv1 = nn.Conv3d(inputs, INNER, 1, bias=False)
        self.bn2 = nn.BatchNorm3d(INNER)
        self.conv2 = nn.Conv3d(INNER, GROWTH, (3, 3, 1), padding=(1, 1, 0), bias=False)
        self.bn3 = nn.BatchNorm3d(GROWTH)
        self.conv3 = nn.Conv3d(GROWTH, GROWTH, (1, 1, 3), padding=(0, 0, 1), bias=False)
        self.bn4 = nn.BatchNorm3d(GROWTH)
        self.conv4 = nn.Conv3d(GROWTH, GROWTH, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.conv1(self.relu(self.bn1(x)))
        flat = self.conv2(self.relu(self.bn2(inner)))
        along_z = self.conv3(self.relu(self.bn3(flat)))
        added = self.conv4(self.relu(self.bn4(flat + along_z)))
        return torch.cat((x, added), 1)


class _Pyramid(nn.Module):
    """Prepends one feature for each scale: the largest values of cells of 8, 16 … voxels in x and y."""

    def __init__(self, inputs: int, scales: int, mode: str) -> None:
        super().__init__()
        cells = [(2**i, 2**i, 1) for i in range(3, 3 + scales)]
        self.mode = mode
        self.up_modules = nn.ModuleList()  # the first to be initialised, the last to be made
        self.pool_modules = nn.ModuleList(nn.MaxPool3d(cell) for cell in cells)
        # a margin of one cell around the pooled, which transposed convolutions cut off again
        self.project_modules = nn.ModuleList(nn.Conv3d(inputs, 1, 1, padding=(1, 1, 0)) for _ in cells)
        if mode == "transpose":
            self.up_modules.extend(
                nn.ConvTranspose3d(1, 1, cell, cell, padding=(cell[0], cell[1], 0)) for cell in cells
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scales = []
        for pool, project, up in itertools.zip_longest(
            self.pool_modules, self.project_modules, self.up_modules
        ):
            feature = project(pool(x))
            scales.append(up(feature) if up is not None else self._interpolated(feature, x.shape[2:]))
        return torch.cat((*scales, x), 1)

    def _interpolated(self, x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        return functional.interpolate(x, list(size), mode=self.mode, align_corners=_corners(self.mode))


def _initialise(module: nn.Module) -> None:
    """He's initialisation by what a flat kernel gives; biases stay as they were made."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        flat = module.kernel_size[0] * module.kernel_size[1]
        nn.init.normal_(module.weight, 0, math.sqrt(2 / (flat * module.out_channels)))
