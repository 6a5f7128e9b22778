"""Sliding-window inference on a volume that is already at the model's spacing."""

from typing import cast

import numpy as np
import torch
import torchio as tio

from liverseg_core.arrays import Image, Probabilities
from liverseg_core.model import Model, load_model
from liverseg_core.patches import normalise

__all__ = ["load_model", "predict_probabilities"]


def predict_probabilities(
    model: Model, image: Image, overlap: float = 0.25, batch_size: int = 4
) -> Probabilities:
    """Predict every voxel's class probabilities from overlapping windows with Hann weights.

    Args:
        model: From `load_model`.
        image: CT in HU, canonical, at the spacing of the model's `ingest` section.
        overlap: Share of a window that overlaps its neighbour, in [0, 1).
        batch_size: Windows predicted at once.

    Returns:
        One channel per class: softmax, or for a model trained with binary cross-entropy each class's sigmoid.
    """
    size = np.array(model.spec.patch_size)
    windows = tio.Subject(image=tio.ScalarImage(tensor=_padded(model, image)))
    # GridSampler wants even overlaps smaller than the window.
    steps = np.minimum(2 * np.rint(overlap * size / 2), 2 * ((size - 1) // 2)).astype(int)
    sampler = tio.GridSampler(windows, tuple(size.tolist()), tuple(steps.tolist()))
    aggregator = tio.GridAggregator(sampler, overlap_mode="hann")
    with torch.inference_mode():
        for batch in tio.SubjectsLoader(sampler, batch_size=batch_size):
            logits = model.network(batch["image"][tio.DATA].to(model.device)).float()
            probabilities = logits.softmax(1) if model.spec.activation == "softmax" else logits.sigmoid()
            aggregator.add_batch(probabilities, batch[tio.LOCATION])
    x, y, z = image.shape
    return cast(Probabilities, aggregator.get_output_tensor()[:, :x, :y, :z].numpy())


def _padded(model: Model, image: Image) -> torch.Tensor:
    """The normalised volume (1, x, y, z), filled up with air to the size of a window."""
    scaled = normalise(image, model.spec.window_hu)
    missing = [(0, max(0, n - m)) for n, m in zip(model.spec.patch_size, image.shape, strict=True)]
    return torch.from_numpy(np.pad(scaled, missing, constant_values=-1))[None]
