"""The cases that ingest is measured on: a Decathlon folder of full-size phantoms, and one real scan."""

import gzip
import io
import json
import os
import shutil
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from liverseg_core.durable import write_atomically
from liverseg_core.phantom.dataset import phantom_case
from liverseg_core.sources.source import CaseSource, open_source

REAL = Path(os.environ.get("LIVERSEG_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
LIDC = REAL / "lidc0314_lower" / "lidc0314_lower110_ct.nii.gz"
SMALL = "small"
"""Loads every library before anything is measured."""
PHANTOMS = {
    SMALL: ((64, 64, 64), (1.25, 1.25, 1.25)),
    "full-300": ((512, 512, 300), (0.68, 0.68, 0.8)),
    "full-330": ((512, 512, 330), (0.74, 0.74, 1.0)),
    "full-360": ((512, 512, 360), (0.77, 0.77, 1.0)),
    "full-390": ((512, 512, 390), (0.82, 0.82, 1.0)),
    "full-420": ((512, 512, 420), (0.9, 0.9, 1.25)),
    "giant-987": ((512, 512, 987), (0.77, 0.77, 0.7)),
    "thick-80": ((512, 512, 80), (0.8, 0.8, 5.0)),
}
"""Voxels, and spacing in mm: within the range of the Decathlon's liver scans, around 0.77 × 0.77 × 1."""
FINE = (0.61, 0.61, 0.66)
"""About what a phantom of this size has by itself; such a case is stored in a quarter of its voxels."""


def prepared(folder: Path) -> dict[str, CaseSource]:
    """The cases by name; makes those that the folder doesn't hold yet, which takes minutes."""
    for index, name in enumerate(PHANTOMS):
        if not (folder / _label(name)).exists():
            print(f"phantom {name}", file=sys.stderr)
            _write_phantom(folder, name, index)
    if LIDC.exists() and not (folder / "imagesTs" / "lidc.nii.gz").exists():
        (folder / "imagesTs").mkdir(exist_ok=True)
        shutil.copyfile(LIDC, folder / "imagesTs" / "lidc.nii.gz")
    test = [path.relative_to(folder).as_posix() for path in (folder / "imagesTs").glob("*.nii.gz")]
    write_atomically(folder / "dataset.json", _listing(list(PHANTOMS), test).encode())
    return {case.case: case for case in open_source(str(folder)).cases}


def full_size(cases: dict[str, CaseSource]) -> list[CaseSource]:
    """Those that the goal is about."""
    return [case for name, case in cases.items() if name.startswith("full")]


def fine(case: CaseSource) -> CaseSource:
    """The same bytes as if their header said `FINE`."""
    return replace(case, case=case.case.replace("full", "fine"), spacing_mm=FINE)


def pack(folder: Path, names: list[str], tar: Path) -> None:
    """A Decathlon tar of some of the folder's labelled cases."""
    listing = _listing(names, []).encode()
    with tarfile.open(tar, "w") as packed:
        entry = tarfile.TarInfo("Task03_Liver/dataset.json")
        entry.size = len(listing)
        packed.addfile(entry, io.BytesIO(listing))
        for name in (part(case) for case in names for part in (_image, _label)):
            packed.add(folder / name, f"Task03_Liver/{name}")


def files_of(folder: Path, case: CaseSource) -> list[Path]:
    """The scan's file, and the label's where there is one."""
    return [folder / member.name for member in (case.image, case.label) if member]


def bytes_below(folder: Path) -> int:
    """What the files in a folder hold."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _write_phantom(folder: Path, name: str, index: int) -> None:
    size, spacing_mm = PHANTOMS[name]
    image, label, affine = phantom_case(0, index, size)
    affine[:3, :3] *= np.divide(spacing_mm, np.linalg.norm(affine[:3, :3], axis=0))
    for file, volume in ((_image(name), image), (_label(name), label)):
        nifti = nib.Nifti1Image(volume, affine)
        nifti.header.set_xyzt_units("mm")
        nifti.set_sform(affine, 1)
        nifti.set_qform(affine, 1)
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".part").write_bytes(gzip.compress(nifti.to_bytes(), 6, mtime=0))
        path.with_suffix(".part").rename(path)


def _listing(names: list[str], test: list[str]) -> str:
    training = [{"image": _image(name), "label": _label(name)} for name in names]
    labels = {"1": "liver", "2": "cancer"}
    return json.dumps({"name": "benchmark", "labels": labels, "training": training, "test": test})


def _image(name: str) -> str:
    return f"imagesTr/{name}.nii.gz"


def _label(name: str) -> str:
    return f"labelsTr/{name}.nii.gz"
