"""Augmentation of one patch: first all chance is drawn, then it is applied, here or on a GPU.

A rotated or shrunken patch needs voxels from outside itself. What is drawn before anything is read tells the
reader exactly which; and since a draw is a value, two ways of applying it give the same patch.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn.functional import interpolate

from liverseg_core.arrays import Affine
from liverseg_core.config import AugmentConfig
from liverseg_core.training.warp import Matrix

Patch = Float32[Tensor, "z y x"]
LPS = np.array([-1.0, -1.0, 1.0])
"""torchio hands transforms to ITK, whose x and y run the other way."""
TRUNCATE = 4
"""A Gaussian ends after so many standard deviations, as in scipy."""


@dataclass(frozen=True)
class Draw:
    """What happens to one patch.

    Args:
        matrix: Where its voxels come from, about its centre (see warp.py): affine and flips in one.
        gamma: Exponent of intensities in (0, 1).
        brightness: Factor.
        contrast: Factor about the mean.
        blur: Standard deviations along x, y, z in voxels; 0: none.
        zoom: Share of the voxels that remain along each axis before they are interpolated back.
        noise_std: Of Gaussian noise.
        seed: Of that noise.
    """

    matrix: Matrix
    gamma: float
    brightness: float
    contrast: float
    blur: tuple[float, float, float]
    zoom: float
    noise_std: float
    seed: int


def draw(config: AugmentConfig, affine: Affine, rng: np.random.Generator) -> Draw:
    """Draw a patch's augmentation; the affine and its parts have the distributions of torchio's transforms.

    Args:
        config: Probabilities and ranges.
        affine: The patch's voxel index → RAS+ mm: rotations are the patient's, not the voxels'.
        rng: Every number is drawn whether it is used or not, so that no transform's use moves another's.
    """

    def perhaps(probability: float, value: Any, otherwise: Any) -> Any:
        return value if rng.random() < probability else otherwise

    def around_one(reach: float) -> float:
        return float(rng.uniform(1 - reach, 1 + reach))

    scales = rng.uniform(1 - config.scales, 1 + config.scales, 3)
    degrees = rng.uniform(-config.degrees, config.degrees, 3)
    turned = perhaps(config.affine_probability, pull_matrix(scales, degrees, affine), np.eye(3))
    flips = np.where(rng.random(3) < config.flip_probability, -1.0, 1.0)
    gamma = math.exp(rng.uniform(-config.log_gamma, config.log_gamma))
    blur = tuple(rng.uniform(*config.blur_sigma, 3).tolist())
    return Draw(
        matrix=turned * flips,  # mirrors the patch: its columns are the patch's axes
        gamma=perhaps(config.gamma_probability, gamma, 1.0),
        brightness=perhaps(config.brightness_probability, around_one(config.brightness), 1.0),
        contrast=perhaps(config.contrast_probability, around_one(config.contrast), 1.0),
        blur=perhaps(config.blur_probability, blur, (0.0, 0.0, 0.0)),
        zoom=perhaps(config.low_resolution_probability, float(rng.uniform(config.smallest_zoom, 1)), 1.0),
        noise_std=perhaps(config.noise_probability, float(rng.uniform(0, config.noise_std)), 0.0),
        seed=int(rng.integers(2**63)),
    )


def pull_matrix(
    scales: Float32[np.ndarray, "3"], degrees: Float32[np.ndarray, "3"], affine: Affine
) -> Matrix:
    """The map from output to source voxels of `torchio.Affine(scales, degrees, …)` about a common centre.

    In ITK's millimetres (LPS) a point is turned about y, then x, then z, and scaled. Resampling asks the
    other way round, for R⁻¹S⁻¹; the axes of the voxels turn that into voxels.
    """
    a, b, c = np.radians(degrees) * LPS
    about_x = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    about_y = np.array([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
    about_z = np.array([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
    axes = affine[:3, :3] * LPS[:, None]
    pull = (about_z @ about_x @ about_y).T / scales
    return np.asarray(np.linalg.solve(axes, pull @ axes))


def change_intensities(image: Patch, drawn: Draw) -> Patch:
    """Apply everything but the matrix to a patch in (−1, 1), on its own device; may overwrite it."""
    if drawn.gamma != 1:
        image = image.add_(1).mul_(0.5).pow_(drawn.gamma).mul_(2).sub_(1)  # no kink at 0, amid soft tissue
    if drawn.brightness != 1:
        image = image.mul_(drawn.brightness)
    if drawn.contrast != 1:
        (low, high), mean = image.aminmax(), image.mean()
        image = image.sub_(mean).mul_(drawn.contrast).add_(mean).clamp_(low, high)
    for axis, sigma in zip((2, 1, 0), drawn.blur, strict=True):
        if sigma:
            image = _blur(image, axis, sigma)
    if drawn.zoom != 1:
        fewer = [max(1, round(n * drawn.zoom)) for n in image.shape]
        coarse = interpolate(image[None, None], fewer, mode="nearest-exact")
        image = interpolate(coarse, image.shape, mode="trilinear")[0, 0]
    if drawn.noise_std:
        generator = torch.Generator(image.device).manual_seed(drawn.seed)
        noise = torch.randn(image.shape, generator=generator, device=image.device)
        image = image.add_(noise, alpha=drawn.noise_std)
    return image


def _blur(image: Patch, axis: int, sigma: float) -> Patch:
    """Blur along one axis, mirrored at the ends: a sum of shifted copies, each a pass of plain additions."""
    radius, size = int(TRUNCATE * sigma + 0.5), image.shape[axis]
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    places = torch.arange(-radius, size + radius, device=image.device) % (2 * size)
    padded = image.index_select(axis, torch.minimum(places, 2 * size - 1 - places))
    blurred = torch.zeros_like(image)
    for k, weight in enumerate((kernel / kernel.sum()).tolist()):
        blurred.add_(padded.narrow(axis, k, size), alpha=weight)
    return blurred
