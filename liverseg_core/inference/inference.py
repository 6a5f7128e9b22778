"""Sliding-window inference on a volume that is already at the model's spacing, in bounded memory."""

import contextlib
import itertools
import logging
import traceback
import weakref
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from liverseg_core.allocator import first_step_done
from liverseg_core.arrays import Image, Probabilities
from liverseg_core.config import EvaluateConfig
from liverseg_core.errors import LiversegError
from liverseg_core.inference.windows import Sums, cut, tile, window_weights
from liverseg_core.inference.windows import rows as rows_of
from liverseg_core.models.intensity import AIR_HU
from liverseg_core.models.model import Model, load_model
from liverseg_core.out_of_memory import is_out_of_memory
from liverseg_core.volumes.resample import ProbabilityPlane

__all__ = ["load_model", "predict_planes", "predict_probabilities"]

_logger = logging.getLogger(__name__)

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
PAIR = 2
"""Windows that a CPU predicts at once where it may take more, or three rather than leave one over. A fourth
costs memory and saves no time; one alone is computed in another way, with other last bits, and threads share
it badly."""
_ALONE: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Networks whose GPU was found to have no room for several windows at once."""
MIRRORED = {"x": 2, "y": 3, "z": 4}
"""Axes of a batch of windows."""


def predict_planes(model: Model, image: Image, settings: EvaluateConfig) -> Iterator[ProbabilityPlane]:
    """Predict class probabilities from overlapping windows, plane by plane, upwards.

    Windows of nothing but air are background without asking the network.

    Args:
        model: From `load_model`.
        image: CT in HU, canonical, at the spacing of the model's `ingest` section.
        settings: How windows overlap and are weighted, which are air, and whether they are mirrored too.

    Yields:
        One channel per class: softmax, or for a model trained with binary cross-entropy each class's sigmoid.

    Raises:
        LiversegError: LS524 when the network's outputs are no numbers.
    """
    size = model.spec.patch_size
    tiling = tile((image.shape[0], image.shape[1], image.shape[2]), size, settings.overlap)
    x, y, z = image.shape
    # Beyond the scan there is air, as in training; a scan as large as a window is not copied.
    missing = [(0, n - m) for n, m in zip(tiling.shape, image.shape, strict=True)]
    volume = np.pad(image, missing, constant_values=AIR_HU) if tiling.shape != image.shape else image
    weights = torch.from_numpy(window_weights(size, settings.weights)).to(model.device)
    sums = Sums(tiling, len(model.spec.classes), weights)
    for low, done in rows_of(tiling.starts[2], tiling.shape[2]):
        planes = volume[:, :, low : low + size[2]]
        _add_row(model, planes, tiling.row, sums, settings)
        means = sums.take((x, y, min(done, z - low)))
        if means is None:
            raise _no_numbers(settings)
        sums.drop(done)
        yield from means


def predict_probabilities(
    model: Model, image: Image, overlap: float = 0.25, batch_size: int = 4
) -> Probabilities:
    """Predict every voxel's class probabilities at once, for volumes of which they fit in memory.

    Args:
        model: From `load_model`.
        image: As `predict_planes` takes it.
        overlap: Share of a window that overlaps its neighbour, in [0, 1).
        batch_size: Windows predicted at once.
    """
    # What is only a signal of training must not end it: bf16 can't overflow.
    changes = {"overlap": overlap, "batch_size": batch_size, "precision": "bf16"}
    settings = model.inference.model_copy(update=changes)
    found = np.empty((len(model.spec.classes), *image.shape[::-1]), np.float32)
    for k, plane in enumerate(predict_planes(model, image, settings)):
        found[:, k] = plane
    return found.transpose(0, 3, 2, 1)


@torch.inference_mode()
def _add_row(
    model: Model, planes: Image, places: Sequence[tuple[int, int]], sums: Sums, settings: EvaluateConfig
) -> None:
    """Predict the windows at these (x, y) of a row, and add them up."""
    width, height, _ = model.spec.patch_size
    waiting: list[tuple[int, int]] = []
    for x, y in places:
        air = settings.air_hu is not None and planes[x : x + width, y : y + height].max() < settings.air_hu
        if air:
            sums.add_background(x, y)
        else:
            waiting.append((x, y))
    batches = _batches(waiting, settings.batch_size, model.device)
    windows = torch.empty(max(map(len, batches), default=0), 1, *model.spec.patch_size)
    for batch in batches:
        for window, (x, y) in zip(windows, batch, strict=False):
            cut(planes, x, y, window[0].numpy(), model.spec.window_hu)
        found = predicted(model, windows[: len(batch)], settings)
        for (x, y), probabilities in zip(batch, found, strict=True):
            sums.add(x, y, probabilities)
        first_step_done()


def _batches(
    places: Sequence[tuple[int, int]], batch_size: int, device: torch.device
) -> list[Sequence[tuple[int, int]]]:
    """Batches of nearly one size: a window left over costs a CPU up to three times one of a batch."""
    count = len(places)
    pairs = device.type == "cpu" and batch_size > PAIR and count > 1
    number = count // PAIR if pairs else -(-count // batch_size)
    ends = [count * k // number for k in range(number + 1)] if count else []
    return [places[low:high] for low, high in itertools.pairwise(ends)]


def predicted(model: Model, windows: Tensor, settings: EvaluateConfig) -> Iterator[Tensor]:
    """Class probabilities of each of some windows; one by one from where a GPU has no room for them together.

    On a CPU they stay together: one alone has other last bits there.
    """
    done = 0
    while done < len(windows):
        part = windows[done : done + 1] if model.network in _ALONE else windows[done:]
        try:
            found = _predict(model, part, settings)
        except RuntimeError as error:
            if len(part) == 1 or model.device.type == "cpu" or not is_out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)
            _ALONE.add(model.network)
            _logger.warning("the GPU has no memory for %d windows at once: one at a time now", len(part))
            continue
        done += len(part)
        yield from found


def _predict(model: Model, windows: Tensor, settings: EvaluateConfig) -> Tensor:
    """Class probabilities of a batch of windows (b, 1, x, y, z), the mean over all ways of mirroring them."""
    gpu = model.device.type == "cuda"
    order = torch.channels_last_3d if gpu else torch.contiguous_format
    inputs = windows.to(model.device, memory_format=order)
    half = HALVES.get(settings.precision)
    precision = torch.autocast("cuda", dtype=half) if gpu and half else contextlib.nullcontext()
    axes = [MIRRORED[axis] for axis in settings.mirror]
    ways = [way for n in range(len(axes) + 1) for way in itertools.combinations(axes, n)]
    total: Tensor | None = None
    for way in ways:
        with precision:
            logits = model.network(inputs.flip(way) if way else inputs)
        probabilities = _probabilities(logits.float(), model.spec.activation)
        probabilities = probabilities.flip(way) if way else probabilities
        total = probabilities if total is None else total.add_(probabilities)
    assert total is not None
    return total.div_(len(ways)) if len(ways) > 1 else total


def _probabilities(logits: Tensor, activation: Literal["softmax", "sigmoid"]) -> Tensor:
    """In the logits' own place where the CPU computed them: fresh memory would cost more than the softmax."""
    if activation == "sigmoid":
        return logits.sigmoid_()
    reused = logits if logits.device.type == "cpu" and logits.is_contiguous() else None
    return torch.softmax(logits, 1, out=reused)


def _no_numbers(settings: EvaluateConfig) -> LiversegError:
    remedy = "Set evaluate.precision to fp32" if settings.precision != "fp32" else "Train the model again"
    return LiversegError("LS524", "the network's outputs are no numbers", "finite logits", remedy)
