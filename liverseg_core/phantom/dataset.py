"""Phantom CTs as a Decathlon tar: what the demo, the tests and the benchmarks train on.

The same specification gives the same bytes, and a case depends on nothing but the seed, its number and the
size: a tar with one more case is the old tar and that case.
"""

import contextlib
import gzip
import io
import json
import os
import struct
import tarfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from liverseg_core.arrays import Affine, Image, Label, Shape
from liverseg_core.durable import is_disk_full
from liverseg_core.errors import LiversegError
from liverseg_core.phantom.case import phantom_case

__all__ = ["PhantomSpec", "phantom_case", "write_phantom_tar"]

ROOT = "Task03_Liver"
FIRST_UNLABELLED = 1000
"""Fixed, so that one more labelled case leaves the unlabelled ones alone."""


@dataclass(frozen=True)
class PhantomSpec:
    """What decides a phantom's bytes."""

    cases: int = 30
    """Labelled cases."""
    unlabelled: int = 4
    size: Shape = (112, 112, 64)
    """Voxels of every case; the field of view is a patient's whatever the size."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what can't be made.

        Raises:
            LiversegError: LS221 when a number is out of range.
        """
        numbers_fit = 1 <= self.cases <= FIRST_UNLABELLED and 0 <= self.unlabelled <= FIRST_UNLABELLED
        if (
            not numbers_fit
            or len(self.size) != 3
            or min(self.size) < 16
            or max(self.size) > 1024
            or self.seed < 0
        ):
            raise LiversegError(
                "LS221",
                f"a phantom of {self.cases} + {self.unlabelled} cases of size {self.size}, seed {self.seed}",
                f"1–{FIRST_UNLABELLED} cases, 0–{FIRST_UNLABELLED} unlabelled, sizes of 16–1024, seed ≥ 0",
                "Correct the option",
            )


def write_phantom_tar(path: Path, spec: PhantomSpec, progress: Callable[[str], None] | None = None) -> None:
    """Write a phantom dataset as a Decathlon tar.

    Args:
        path: The tar. It appears under this name only when it is whole.
        spec: What to write.
        progress: Told the name of each case written.

    Raises:
        LiversegError: LS223 when the file can't be written, LS701 when the disk is full.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            _write_members(tar, spec, progress)
        temporary.replace(path)
    except OSError as error:
        raise LiversegError(
            "LS701" if is_disk_full(error) else "LS223",
            f"cannot write {path}: {error.strerror or error}",
            "a path that this user may write to, on a disk with free space",
            "Free some space, or name another file",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _write_members(tar: tarfile.TarFile, spec: PhantomSpec, progress: Callable[[str], None] | None) -> None:
    for folder in ("", "/imagesTr", "/labelsTr", *(["/imagesTs"] if spec.unlabelled else [])):
        entry = tarfile.TarInfo(ROOT + folder)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(entry)
    _add(tar, "dataset.json", json.dumps(dataset_json(spec), indent=1).encode())
    for index, image, label in _compressed(spec):
        labelled = index < FIRST_UNLABELLED
        _add(tar, f"{'imagesTr' if labelled else 'imagesTs'}/liver_{index}.nii.gz", image)
        if labelled:
            _add(tar, f"labelsTr/liver_{index}.nii.gz", label)
        if progress is not None:
            progress(f"liver_{index}")


def dataset_json(spec: PhantomSpec) -> dict[str, object]:
    """The Decathlon's description of the dataset."""
    labelled = [f"liver_{index}.nii.gz" for index in range(spec.cases)]
    unlabelled = [f"liver_{FIRST_UNLABELLED + number}.nii.gz" for number in range(spec.unlabelled)]
    return {
        "name": "Liver phantom",
        "description": "Computed phantom of liver and liver tumours in CT; no patient was scanned",
        "reference": "liverseg phantom",
        "licence": "CC0 1.0",
        "release": f"seed {spec.seed}, size {'x'.join(map(str, spec.size))}",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "cancer"},
        "numTraining": spec.cases,
        "numTest": spec.unlabelled,
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in labelled],
        "test": [f"./imagesTs/{name}" for name in unlabelled],
    }


def _compressed(spec: PhantomSpec) -> Iterator[tuple[int, bytes, bytes]]:
    """The cases in order, made by a few threads ahead of the writer; memory stays at one case a thread."""
    indices = deque([*range(spec.cases), *range(FIRST_UNLABELLED, FIRST_UNLABELLED + spec.unlabelled)])
    threads = os.cpu_count() or 1
    pending: deque[Future[tuple[int, bytes, bytes]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        while indices or pending:
            while indices and len(pending) < threads:
                pending.append(pool.submit(_compress, spec, indices.popleft()))
            yield pending.popleft().result()


def _compress(spec: PhantomSpec, index: int) -> tuple[int, bytes, bytes]:
    image, label, affine = phantom_case(spec.seed, index, spec.size)
    return index, _nifti(image, affine, index), _nifti(label, affine, 0)


def _nifti(volume: Image | Label, affine: Affine, index: int) -> bytes:
    """A `.nii.gz`. Of every sixteen images one is stored as float32 and one as uint16 with an offset."""
    import nibabel as nib

    offset = -1024 if index % 16 == 11 else 0
    stored = {6: np.float32, 11: np.uint16}.get(index % 16, volume.dtype)
    nifti = nib.Nifti1Image((volume - offset).astype(stored), affine)
    if offset:
        nifti.header.set_slope_inter(1, offset)
    nifti.header.set_xyzt_units("mm")
    nifti.set_sform(affine, 1)
    nifti.set_qform(affine, 1)
    return gzip.compress(nifti.to_bytes(), 1, mtime=0)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member after the junk that macOS puts beside each file, as the real archive has it."""
    folder, _, file = name.rpartition("/")
    for member, content in ((f"{folder}/._{file}".lstrip("/"), _APPLE_DOUBLE), (name, data)):
        entry = tarfile.TarInfo(f"{ROOT}/{member}")
        entry.size, entry.mode = len(content), 0o644
        tar.addfile(entry, io.BytesIO(content))


_APPLE_DOUBLE = struct.pack(">II16sHIII32x", 0x00051607, 0x00020000, b"Mac OS X", 1, 9, 38, 32)
"""An AppleDouble header with one entry, an empty Finder record."""
