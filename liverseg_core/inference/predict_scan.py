"""One scan of a prediction: from its file to files beside each other, and what they say."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from liverseg_core.allocator import memory_kept
from liverseg_core.cases.target import Target
from liverseg_core.classes import CLASSES
from liverseg_core.errors import LiversegError
from liverseg_core.inference.doubts import NOTE, SEEN_FLAGS
from liverseg_core.inference.inference import load_model
from liverseg_core.inference.native_volume import native_volume, replacing, uncertainty
from liverseg_core.inference.opened import open_path
from liverseg_core.inference.predict import Watch, prepare, segment_scan
from liverseg_core.inference.wanted import Wanted
from liverseg_core.models.model import Model
from liverseg_core.volumes.nifti import Scan, write_label
from liverseg_core.volumes.nifti_header import NiftiHeader

if TYPE_CHECKING:
    from liverseg_core.dicom.series import Series


def predict_scan(wanted: Wanted, model: Path, device: str) -> dict[str, Any]:
    """Segment a scan and write what is wanted of it, each file whole or not at all, the label last.

    Args:
        wanted: Which scan, and what of it.
        model: A model's folder; it is loaded once in each process.
        device: A torch device, or `auto`.

    Returns:
        The files by what they are, what `findings` finds, the `flags` that `doubts` raises, and as `remarks`
        what each says of this scan.

    Raises:
        LiversegError: LS301, LS311 to LS319 and LS352 to LS355 for a scan that can't be used; LS208 and LS701
            where files can't be written; LS703, LS705; what `load_model` and `segment` raise.
    """
    try:
        # A scan that is none is found before a model is loaded for it.
        return _predict(wanted, *open_path(wanted.scan), _loaded(model, device))
    except MemoryError:
        allowed, remedy = "a scan that fits in memory", "Use fewer workers, or a machine with more memory"
        raise LiversegError("LS703", f"too little memory for {wanted.case}", allowed, remedy) from None


@memory_kept()
def _predict(wanted: Wanted, scan: Scan, series: "Series | None", network: Model) -> dict[str, Any]:
    prepared = prepare(network, scan)
    files = {"image": str(wanted.scan), "label": str(wanted.label)}
    with contextlib.ExitStack() as stack:
        part = stack.enter_context(replacing(wanted.label))
        watches = []
        for what in ("probabilities", "uncertainty"):
            if getattr(wanted, what):
                files[what] = str(wanted.beside(what))
                watches.append(stack.enter_context(_watching(what, wanted, scan.header, prepared.target)))
        found = segment_scan(network, prepared, _all(watches))
        stored = found.stored()
        # Whoever scores the label later can't know it otherwise.
        note = "".join(f"{NOTE}{flag}" for flag in found.doubts if flag in SEEN_FLAGS)
        write_label(part, stored, scan.header, note)
        if series and series.can_be_referenced:
            from liverseg_core.dicom.seg import write_seg

            files["seg"] = str(wanted.beside("seg"))
            write_seg(series, stack.enter_context(replacing(wanted.beside("seg"))), stored)
    return {**files, **found.findings, "flags": [*found.doubts], "remarks": found.remarks()}


@functools.lru_cache(maxsize=1)
def _loaded(folder: Path, device: str) -> Model:
    return load_model(folder, device)


@contextlib.contextmanager
def _watching(what: str, wanted: Wanted, header: NiftiHeader, target: Target) -> Iterator[Watch]:
    """Writes each plane's probabilities, or their uncertainty, on its way."""
    with replacing(wanted.beside(what)) as part:
        if what == "uncertainty":
            with native_volume(part, header, target.orientation, np.uint8, 1) as put:
                yield lambda z, plane: put(z, uncertainty(plane))
        else:
            with native_volume(part, header, target.orientation, np.uint16, len(CLASSES)) as put:
                yield put


def _all(watches: list[Watch]) -> Watch:
    def watch(z: int, plane: Any) -> None:
        for one in watches:
            one(z, plane)

    return watch
