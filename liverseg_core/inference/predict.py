"""From a scan as stored to its labels on the same voxels, and what to think of them: prepare, infer, carry
back, doubt.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from liverseg_core.arrays import Image, Label
from liverseg_core.artifacts.artifact import Facts
from liverseg_core.cases.scan_facts import anatomy_of, scan_facts
from liverseg_core.cases.scan_identity import ScanIdentifier, identifying
from liverseg_core.cases.target import Target, image_planes, plan_target
from liverseg_core.inference.doubts import Doubts, doubts, label_facts, second_part
from liverseg_core.inference.findings import findings
from liverseg_core.inference.inference import predict_planes
from liverseg_core.inference.postprocess import postprocess
from liverseg_core.models.model import Model
from liverseg_core.out_of_memory import no_room_on_gpu, out_of_memory
from liverseg_core.volumes.nifti import Scan, Volume, as_hu
from liverseg_core.volumes.planes import stored_planes
from liverseg_core.volumes.resample import ProbabilityPlane, resample_image, resample_probabilities


@dataclass(frozen=True)
class Prepared:
    """A scan as a model wants it: on the grid of its `ingest` section.

    Args:
        image: HU.
        target: Where the scan's voxels went.
        facts: From `scan_facts`, and which scan it is.
    """

    image: Image
    target: Target
    facts: Facts


@dataclass(frozen=True)
class Segmented:
    """A scan's labels, and what they say.

    Args:
        label: Canonical, at the scan's own spacing.
        target: As prepared.
        findings: Volumes and lesions.
        doubts: Flags, and what they say of this scan.
    """

    label: Label
    target: Target
    findings: dict[str, Any]
    doubts: Doubts

    def remarks(self) -> list[str]:
        """The doubts in words."""
        return [f"{flag}: {told}" for flag, told in self.doubts.items()]

    def stored(self) -> Label:
        """The labels on the scan's own axes."""
        return np.asfortranarray(self.target.orientation.from_canonical(self.label))


Watch = Callable[[int, ProbabilityPlane], None]
"""Is shown each native plane's z and class probabilities, upwards."""


def prepare(model: Model, scan: Scan) -> Prepared:
    """Read a scan as a model wants it.

    Raises:
        LiversegError: LS311 and LS317 for a damaged file, LS318 for voxel values that can't be HU, LS319 for
            a scan that would become too large.
    """
    target = plan_target(scan.header, model.spec.ingest)
    identifier = ScanIdentifier(target.source.shape[2])
    image = read_image(scan, target, identifier)
    facts = {**scan_facts(scan.header, target, image), "identity": asdict(identifier.identity())}
    return Prepared(image, target, facts)


def segment_scan(model: Model, scan: Prepared, watch: Watch | None = None) -> Segmented:
    """Segment a scan, as the model was when it was measured (its `inference` settings).

    Raises:
        LiversegError: LS524 when the network's outputs are no numbers, LS705 when a GPU's memory is short.
        MemoryError: When the machine's is.
    """
    ruleless = canonical_label(model, scan.image, scan.target, watch)
    spacing_mm = scan.target.source.spacing_mm
    label = postprocess(ruleless, model.inference, spacing_mm)
    found = findings(label, spacing_mm)
    seconds = [second_part(one, spacing_mm) for one in ([label] if label is ruleless else [ruleless, label])]
    of_label = label_facts(label, found, spacing_mm)
    facts = {**scan.facts, "native_label": of_label, "anatomy": anatomy_of(scan.target, scan.image, label)}
    return Segmented(label, scan.target, found, doubts(facts, found, max(seconds), model.known))


def segment(model: Model, volume: Volume) -> Label:
    """The labels alone of a scan that was read whole.

    Args:
        model: From `load_model`.
        volume: The scan as read from its file.

    Returns:
        0 background, 1 liver, 2 tumour, on the scan's own axes and grid.

    Raises:
        LiversegError: LS318 for voxel values that can't be HU, LS319 for a scan that would become too large,
            LS524 when the network's outputs are no numbers, LS705 when a GPU's memory is too small.
        MemoryError: When the machine's is.
    """
    target = plan_target(volume.header, model.spec.ingest)
    image: Image = np.stack(list(image_planes(volume, target))).T
    label = canonical_label(model, image, target)
    kept = postprocess(label, model.inference, target.source.spacing_mm)
    return np.asfortranarray(target.orientation.from_canonical(kept))


def segment_prepared(model: Model, image: Image, target: Target) -> Label:
    """Segment a volume that is on its case's grid, by no rules; on the scan's own axes and grid."""
    return np.asfortranarray(target.orientation.from_canonical(canonical_label(model, image, target)))


def canonical_label(model: Model, image: Image, target: Target, watch: Watch | None = None) -> Label:
    """Segment a volume that is on its case's grid; the result is canonical, at the scan's own spacing, as the
    network has it before the rules for labels.

    Probabilities travel back, not labels: deciding after interpolation keeps borders where the network put
    them. They do so plane by plane, and only the label is ever held whole.
    """
    label = np.empty(target.source.shape, np.uint8, order="F")
    planes = predict_planes(model, image, model.inference)
    with out_of_memory(no_room_on_gpu):
        for k, plane in enumerate(resample_probabilities(planes, target.grid, target.source)):
            label[:, :, k] = plane.argmax(axis=0).T
            if watch:
                watch(k, plane)
    return label


def read_image(scan: Scan, target: Target, identifier: ScanIdentifier | None = None) -> Image:
    """Read a scan onto its case's grid as it inflates; only the result is held whole.

    Args:
        scan: Is read to its end.
        target: Where its voxels go.
        identifier: Is shown its planes.

    Raises:
        LiversegError: LS311 and LS317 for a damaged file, LS318 for voxel values that can't be HU.
    """
    orientation, (x, y, z) = target.orientation, target.grid.shape
    stored = stored_planes(scan, orientation.axes, as_hu)
    if identifier:
        stored = identifying(stored, identifier)
    planes = resample_image(stored, target.source, target.grid, orientation.flips, target.interpolation)
    volume = np.empty((z, y, x), np.int16)
    for k, plane in zip(reversed(range(z)) if orientation.flips[2] else range(z), planes, strict=True):
        volume[k] = plane
    return volume.T
