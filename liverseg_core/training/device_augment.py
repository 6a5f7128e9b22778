"""Augmentation of a batch on the device that trains: loader workers then only read.

The draw of each sample is the one that the CPU would apply, so the patches are the same but for rounding.
Boxes differ in size with their draws and are taken one by one; nothing is padded, and a batch is small.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from liverseg_core.arrays import Shape
from liverseg_core.classes import N_CLASSES
from liverseg_core.config import TrainConfig
from liverseg_core.training.augment import change_intensities
from liverseg_core.training.patch_dataset import Cut
from liverseg_core.training.warp import Matrix, is_flip


def augment_batch(cuts: Sequence[Cut], config: TrainConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (b, 1, x, y, z) float32 in (−1, 1) and labels (b, x, y, z) uint8, on the device."""
    low, high = config.window_hu
    vote = config.augment.label_interpolation == "vote"
    images, labels = [], []
    for cut in cuts:
        box = cut.image.to(device, non_blocking=True).float()
        box = box.sub_(low).mul_(2 / (high - low)).sub_(1).clamp_(-1, 1)
        image = _warp(box[None], cut.draw.matrix, config.patch_size, "bilinear")[0].clamp_(-1, 1)
        images.append(change_intensities(image, cut.draw))
        label = cut.label.to(device, non_blocking=True)
        labels.append(_warp_label(label, cut.draw.matrix, config.patch_size, vote))
    return torch.stack(images)[:, None].transpose(-1, -3), torch.stack(labels).transpose(-1, -3)


def _warp_label(label: Tensor, matrix: Matrix, size: Shape, vote: bool) -> Tensor:
    if not vote or is_flip(matrix):
        return _warp(label[None].float(), matrix, size, "nearest")[0].to(torch.uint8)
    falling = torch.arange(N_CLASSES - 1, -1, -1, device=label.device)  # argmax gives a tie to the first
    shares = _warp((label == falling[:, None, None, None]).float(), matrix, size, "bilinear")
    return falling[shares.argmax(0)].to(torch.uint8)


def _warp(box: Tensor, matrix: Matrix, size: Shape, mode: str) -> Tensor:
    """Gather a patch from around the centre of a box, both (c, z, y, x) (see warp.py).

    `grid_sample` measures from −1 to 1 between the outer voxel centres, last axis first, which here is x.
    """
    if is_flip(matrix):
        return box.flip([3 - axis for axis in range(3) if matrix[axis, axis] < 0])
    reach = np.array(box.shape[:0:-1])[:, None] - 1
    theta = np.zeros((1, 3, 4), np.float32)
    theta[0, :, :3] = matrix * (np.array(size) - 1) / reach
    grid = affine_grid(torch.from_numpy(theta).to(box.device), [1, 1, *size[::-1]], align_corners=True)
    return grid_sample(box[None], grid, mode, align_corners=True)[0]
