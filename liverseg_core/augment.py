"""Augmentation of one patch by torchio transforms, with nothing undefined at the patch's edges.

A rotated or shrunken patch needs voxels from outside itself. The affine is therefore drawn before the patch
is read, and the reader adds exactly the margin that this draw pulls in.
"""

import itertools

import numpy as np
import torch
import torchio as tio

from liverseg_core.arrays import Affine, Shape
from liverseg_core.config import AugmentConfig

_LPS = np.array([-1.0, -1.0, 1.0])
"""torchio hands transforms to ITK, whose x and y run the other way."""


def draw_affine(config: AugmentConfig, rng: np.random.Generator) -> tio.Affine | None:
    """Draw one affine with the distribution of `torchio.RandomAffine`, or none."""
    if rng.random() >= config.affine_probability:
        return None
    scales = rng.uniform(1 - config.scales, 1 + config.scales, 3)
    degrees = rng.uniform(-config.degrees, config.degrees, 3)
    return tio.Affine(scales.tolist(), degrees.tolist(), (0, 0, 0), label_interpolation="nearest")


def margin(transform: tio.Affine, size: Shape, affine: Affine) -> Shape:
    """Voxels beyond each side of a patch that the transform pulls into it.

    Args:
        transform: Acts around the patch's centre.
        size: The patch, in voxels.
        affine: The patch's voxel index → RAS+ mm.
    """
    patch = tio.ScalarImage(tensor=torch.empty(1, *size), affine=affine)
    pull = transform.get_affine_transform(patch)  # where in the source each output point comes from
    corners = np.array(list(itertools.product(*((0, n - 1) for n in size))))
    points = (corners @ affine[:3, :3].T + affine[:3, 3]) * _LPS
    sources = np.array([pull.TransformPoint(point.tolist()) for point in points]) * _LPS
    indices = np.linalg.solve(affine[:3, :3], (sources - affine[:3, 3]).T).T
    x, y, z = np.ceil(np.maximum(0, -indices.min(axis=0) - 1e-6)).astype(int).tolist()
    return x, y, z


def intensity_transforms(config: AugmentConfig) -> tio.Transform:
    """Noise and gamma for intensities in (0, 1); torchio draws them from torch's generator."""
    transforms = []
    if config.gamma_probability:
        transforms.append(tio.RandomGamma(config.log_gamma, p=config.gamma_probability))
    if config.noise_probability:
        # half, since (0, 1) is half as wide as the (-1, 1) that the setting speaks of
        transforms.append(tio.RandomNoise(std=(0, config.noise_std / 2), p=config.noise_probability))
    return tio.Compose(transforms)


def augment(subject: tio.Subject, affine: tio.Affine | None, intensity: tio.Transform) -> tio.Subject:
    """Apply a drawn affine and the intensity transforms to `image` in (−1, 1) and `label`."""
    if affine is not None:
        subject = affine(subject)
    if intensity.transforms:
        image = subject["image"]
        image.set_data((image.data + 1) / 2)  # gamma has a kink at 0, which would fall on soft tissue
        subject = intensity(subject)
        image = subject["image"]
        image.set_data(image.data * 2 - 1)
    return subject
