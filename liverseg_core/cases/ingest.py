"""One case's way from the source's bytes to a stored case: inflate, orient, resample, write, slab by slab."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from liverseg_core.artifacts.artifact import Artifact, Facts
from liverseg_core.artifacts.produce import Store, produce
from liverseg_core.cases.anatomy import CoarseScan
from liverseg_core.cases.case_record import case_recipe
from liverseg_core.cases.case_writer import CaseWriter, slabs
from liverseg_core.cases.fingerprint import Fingerprint
from liverseg_core.cases.label_survey import LabelSurvey
from liverseg_core.cases.memory import check_memory, ingest_bytes
from liverseg_core.cases.scan_identity import ScanIdentifier, identifying
from liverseg_core.cases.scans import open_scans
from liverseg_core.cases.store import CHUNK, NATIVE_LABEL
from liverseg_core.cases.target import Target, plan_target
from liverseg_core.config import IngestConfig
from liverseg_core.errors import LiversegError
from liverseg_core.sources.remote import AHEAD, RemoteFile
from liverseg_core.sources.source import CaseSource
from liverseg_core.volumes.nifti import Scan, as_classes, as_hu
from liverseg_core.volumes.nifti_header import NiftiHeader
from liverseg_core.volumes.planes import stored_planes
from liverseg_core.volumes.resample import resample_image, resample_label


def ingest_case(
    case: CaseSource, config: IngestConfig, store: Store, memory_limit: int | None = None
) -> Artifact:
    """Store one case, unless it is stored already.

    Args:
        case: What to store.
        config: How.
        store: Where.
        memory_limit: Bytes that there are for it besides the process's own; None: nobody knows.

    Raises:
        LiversegError: LS303 and LS311 to LS321 for a scan or label that can't be used; LS203, LS601 and LS701
            for the store; LS703 when there is too little memory.
    """
    try:
        return produce(
            store, case_recipe(case, config), lambda folder: _write(case, config, folder, memory_limit)
        )
    except MemoryError:
        allowed, remedy = "a scan that fits in memory", "Use fewer workers, or leave the case out"
        raise LiversegError("LS703", f"too little memory for {case.case}", allowed, remedy) from None


def survey_case(case: CaseSource, config: IngestConfig, memory_limit: int | None = None) -> Facts:
    """The facts that ingest would store of a case; nothing is written.

    Raises:
        LiversegError: As `ingest_case`, but for the store's codes.
    """
    image, label, target = _opened(case, config, memory_limit)
    gathered = Gathered.empty(image, target, config)
    for slab in case_slabs(image, label, target, config, gathered):
        gathered.add(*slab)
    return _facts(case, image.header, target, gathered)


def memory_needed(case: CaseSource, image: Scan, label: Scan | None, target: Target) -> int:
    """Most bytes that ingesting the case holds at a time (see `liverseg_core.cases.memory`)."""
    members = filter(None, (case.image, case.label))
    remote = (member for member in members if isinstance(member.path, RemoteFile))
    ahead = sum(min(member.size, 2 * AHEAD) for member in remote)  # the piece in use, and the next
    taps = 4 if target.interpolation == "cubic" else 2
    label_header = label.header if label else None
    shape, axes = target.grid.shape, target.orientation.axes
    return ahead + ingest_bytes(image.header, label_header, shape, axes, taps)


def _write(case: CaseSource, config: IngestConfig, folder: Path, memory_limit: int | None) -> Facts:
    image, label, target = _opened(case, config, memory_limit, folder / NATIVE_LABEL)
    writer = CaseWriter(folder, target.grid, labelled=label is not None)
    gathered = Gathered.empty(image, target, config)
    for slab in case_slabs(image, label, target, config, gathered):
        writer.write_slab(*slab)
        gathered.add(*slab)
    facts = _facts(case, image.header, target, gathered)
    writer.finish(case.case, gathered.fingerprint.positions(), facts)
    return facts


@dataclass(frozen=True)
class Gathered:
    """What is learned of a case on its way: of planes as stored, and of slabs on the case's grid."""

    identifier: ScanIdentifier
    survey: LabelSurvey
    fingerprint: Fingerprint
    coarse: CoarseScan

    @classmethod
    def empty(cls, image: Scan, target: Target, config: IngestConfig) -> "Gathered":
        """Before the first plane."""
        return cls(
            ScanIdentifier(image.header.shape[target.orientation.axes[2]]),
            LabelSurvey(),
            Fingerprint(target.grid.shape, config.positions_per_class),
            CoarseScan(target.grid.shape, target.grid.spacing_mm),
        )

    def add(self, start: int, image: Any, label: Any) -> None:
        """Take in the slab whose first plane is z = `start`."""
        self.fingerprint.add(start, image, label)
        self.coarse.add(start, image, label)


def case_slabs(
    image: Scan, label: Scan | None, target: Target, config: IngestConfig, seeing: Gathered | None = None
) -> Iterator[tuple[int, Any, Any]]:
    """The case's slabs as they fill: first plane, HU and classes; planes as stored are seen on their way."""
    axes, flips, depth = target.orientation.axes, target.orientation.flips, target.grid.shape[2]
    stored = stored_planes(image, axes, as_hu)
    if seeing:
        stored = identifying(stored, seeing.identifier)
    hu = resample_image(stored, target.source, target.grid, flips, config.interpolation)
    image_slabs = slabs(hu, depth, flips[2])
    label_slabs: Iterable[tuple[int, Any]] = ((0, None) for _ in range(0, depth, CHUNK))
    if label:
        classes = stored_planes(label, axes, as_classes)
        if seeing:
            classes = _surveyed(classes, seeing.survey)
        voted = resample_label(classes, target.source, target.grid, config.label_interpolation, flips)
        label_slabs = slabs(voted, depth, flips[2])
    for (start, image_slab), (_, label_slab) in zip(image_slabs, label_slabs, strict=True):
        yield start, image_slab, label_slab


def _surveyed(planes: Iterable[Any], survey: LabelSurvey) -> Iterator[Any]:
    for plane in planes:
        survey.add(plane)
        yield plane


def _opened(
    case: CaseSource, config: IngestConfig, memory_limit: int | None, keep: Path | None = None
) -> tuple[Scan, Scan | None, Target]:
    """A case's scans, and where they go, once it is clear that there is memory for them."""
    image, label = open_scans(case, keep)
    target = plan_target(image.header, config)
    check_memory(case.case, memory_needed(case, image, label, target), memory_limit)
    return image, label, target


def _facts(case: CaseSource, header: NiftiHeader, target: Target, gathered: Gathered) -> Facts:
    label = gathered.survey.facts(target.source.spacing_mm) if case.label else None
    flags = [*header.flags]
    if label and label["voxels"][1] == 0:
        flags.append("no-liver")
    return {
        "case": case.case,
        "labelled": case.label is not None,
        "shape": list(target.grid.shape),
        "spacing_mm": [round(value, 6) for value in target.grid.spacing_mm],
        "native_shape": list(header.shape),
        "native_spacing_mm": [round(value, 6) for value in header.grid.spacing_mm],
        "native_affine": header.affine.tolist(),
        "spacing_override_mm": case.spacing_mm and list(case.spacing_mm),
        "axes_override": case.axes,
        "orientation": target.orientation.code,
        "native_label": label,
        "flags": flags,
        "identity": asdict(gathered.identifier.identity()),
        "anatomy": gathered.coarse.anatomy(),
        "fingerprint": gathered.fingerprint.facts(),
    }
