"""From a scan as stored to its labels on the same voxels: prepare, infer, carry back."""

import numpy as np

from liverseg_core.arrays import Image, Label, Probabilities
from liverseg_core.inference import predict_probabilities
from liverseg_core.ingest import Target, image_planes, plan_target
from liverseg_core.model import Model
from liverseg_core.nifti import Volume
from liverseg_core.resample import label_on_grid


def segment(model: Model, volume: Volume, overlap: float = 0.25, batch_size: int = 4) -> Label:
    """Segment a scan.

    Args:
        model: From `load_model`.
        volume: The scan as read from its file.
        overlap: Share of a window that overlaps its neighbour.
        batch_size: Windows predicted at once.

    Returns:
        0 background, 1 liver, 2 tumour, on the scan's own axes and grid.

    Raises:
        LiversegError: LS318 for voxel values that can't be HU, LS319 for a scan that would become too large.
    """
    target = plan_target(volume.header, model.spec.ingest)
    image: Image = np.stack(list(image_planes(volume, target))).T
    return native_label(predict_probabilities(model, image, overlap, batch_size), target)


def native_label(probabilities: Probabilities, target: Target) -> Label:
    """Carry probabilities from a case's grid back to the scan's own, and decide there.

    Probabilities travel, not labels: deciding after interpolation keeps borders where the network put them.
    """
    canonical = label_on_grid(probabilities, target.grid, target.source)
    return np.asfortranarray(target.orientation.from_canonical(canonical))
