"""From a scan as stored to its labels on the same voxels: prepare, infer, carry back."""

import math

import cc3d
import numpy as np

from liverseg_core.arrays import Image, Label, Probabilities, Spacing
from liverseg_core.inference import predict_probabilities
from liverseg_core.ingest import Target, image_planes, plan_target
from liverseg_core.model import Model
from liverseg_core.nifti import Volume
from liverseg_core.resample import label_on_grid


def segment(model: Model, volume: Volume) -> Label:
    """Segment a scan, as the model was when it was measured (its `inference` settings).

    Args:
        model: From `load_model`.
        volume: The scan as read from its file.

    Returns:
        0 background, 1 liver, 2 tumour, on the scan's own axes and grid.

    Raises:
        LiversegError: LS318 for voxel values that can't be HU, LS319 for a scan that would become too large.
    """
    target = plan_target(volume.header, model.spec.ingest)
    image: Image = np.stack(list(image_planes(volume, target))).T
    return segment_prepared(model, image, target)


def segment_prepared(model: Model, image: Image, target: Target) -> Label:
    """Segment a volume that is on its case's grid already; the result is on the scan's own axes and grid.

    Probabilities travel back, not labels: deciding after interpolation keeps borders where the network put
    them.
    """
    settings = model.inference
    probabilities: Probabilities = predict_probabilities(model, image, settings.overlap, settings.batch_size)
    canonical = label_on_grid(probabilities, target.grid, target.source)
    canonical = drop_small_lesions(canonical, settings.smallest_lesion_ml, target.source.spacing_mm)
    return np.asfortranarray(target.orientation.from_canonical(canonical))


def drop_small_lesions(label: Label, smallest_ml: float, spacing_mm: Spacing) -> Label:
    """Turn tumours (6-connected components of class 2) smaller than `smallest_ml` into liver."""
    smallest = smallest_ml * 1000 / math.prod(spacing_mm)
    if smallest <= 1:
        return label
    components = cc3d.connected_components(label == 2, connectivity=6)
    sizes = np.bincount(components.ravel())
    small = sizes < smallest
    small[0] = False
    return np.where(small[components], np.uint8(1), label)
