"""From a scan as stored to its labels on the same voxels: prepare, infer, carry back."""

from collections.abc import Callable

import numpy as np

from liverseg_core.arrays import Image, Label
from liverseg_core.cases.target import Target, image_planes, plan_target
from liverseg_core.inference.inference import predict_planes
from liverseg_core.inference.postprocess import postprocess
from liverseg_core.models.model import Model
from liverseg_core.volumes.nifti import Scan, Volume, as_hu
from liverseg_core.volumes.planes import stored_planes
from liverseg_core.volumes.resample import ProbabilityPlane, resample_image, resample_probabilities

Watch = Callable[[int, ProbabilityPlane], None]
"""Is shown each native plane's z and class probabilities, upwards."""


def segment(model: Model, volume: Volume) -> Label:
    """Segment a scan, as the model was when it was measured (its `inference` settings).

    Args:
        model: From `load_model`.
        volume: The scan as read from its file.

    Returns:
        0 background, 1 liver, 2 tumour, on the scan's own axes and grid.

    Raises:
        LiversegError: LS318 for voxel values that can't be HU, LS319 for a scan that would become too large,
            LS524 when the network's outputs are no numbers.
    """
    target = plan_target(volume.header, model.spec.ingest)
    image: Image = np.stack(list(image_planes(volume, target))).T
    return segment_prepared(model, image, target)


def segment_prepared(model: Model, image: Image, target: Target) -> Label:
    """Segment a volume that is on its case's grid already; the result is on the scan's own axes and grid."""
    canonical = canonical_label(model, image, target)
    return np.asfortranarray(target.orientation.from_canonical(canonical))


def canonical_label(model: Model, image: Image, target: Target, watch: Watch | None = None) -> Label:
    """Segment a volume that is on its case's grid; the result is canonical, at the scan's own spacing.

    Probabilities travel back, not labels: deciding after interpolation keeps borders where the network put
    them. They do so plane by plane, and only the label is ever held whole.
    """
    label = np.empty(target.source.shape, np.uint8, order="F")
    planes = predict_planes(model, image, model.inference)
    for k, plane in enumerate(resample_probabilities(planes, target.grid, target.source)):
        label[:, :, k] = plane.argmax(axis=0).T
        if watch:
            watch(k, plane)
    return postprocess(label, model.inference, target.source.spacing_mm)


def read_image(scan: Scan, target: Target) -> Image:
    """Read a scan onto its case's grid as it inflates; only the result is held whole.

    Raises:
        LiversegError: LS311 and LS317 for a damaged file, LS318 for voxel values that can't be HU.
    """
    orientation, (x, y, z) = target.orientation, target.grid.shape
    stored = stored_planes(scan, orientation.axes, as_hu)
    planes = resample_image(stored, target.source, target.grid, orientation.flips, target.interpolation)
    volume = np.empty((z, y, x), np.int16)
    for k, plane in zip(reversed(range(z)) if orientation.flips[2] else range(z), planes, strict=True):
        volume[k] = plane
    return volume.T
