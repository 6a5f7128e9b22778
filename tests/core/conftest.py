"""Builders of small scans, tars and cases; the real files, where they lie."""

import dataclasses
import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from liverseg_core.cases.case_writer import CaseWriter
from liverseg_core.cases.store import CHUNK
from liverseg_core.config import ComputeConfig, IngestConfig, TrainConfig
from liverseg_core.errors import LiversegError
from liverseg_core.sources.source import CaseSource, Member
from liverseg_core.training.train_job import TrainJob
from liverseg_core.volumes.geometry import Grid

pytest.register_assert_rewrite("store_contract")
LABELS = {"0": "background", "1": "liver", "2": "cancer"}


def nifti(data: np.ndarray, affine: np.ndarray | None = None, slope: tuple[float, float] = (1, 0)) -> bytes:
    """An uncompressed NIfTI-1 file of values stored as they are."""
    header = nib.Nifti1Header()
    header.set_data_shape(data.shape)
    header.set_data_dtype(data.dtype)
    header.set_slope_inter(*slope)
    if affine is not None:
        header.set_sform(affine, 1)
        header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    if data.dtype.byteorder == ">":
        header = header.as_byteswapped(">")
    return header.binaryblock + bytes(4) + data.tobytes(order="F")


def zipped(data: bytes) -> bytes:
    """Gzip without a time stamp."""
    return gzip.compress(data, 1, mtime=0)


def tar(path: Path, members: Mapping[str, bytes] | list[tuple[str, bytes]]) -> Path:
    """A plain tar of these members, in this order."""
    with tarfile.open(path, "w") as archive:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def members(cases: Mapping[str, tuple[bytes, bytes | None]], **listing: Any) -> dict[str, bytes]:
    """The members of a Decathlon dataset: case → (image, label or None) as `.nii.gz` bytes."""
    found = {
        f"T/images{'Tr' if label else 'Ts'}/{case}.nii.gz": image for case, (image, label) in cases.items()
    }
    found |= {f"T/labelsTr/{case}.nii.gz": label for case, (_, label) in cases.items() if label}
    training = [
        {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}
        for case, (_, label) in cases.items()
        if label
    ]
    test = [f"./imagesTs/{case}.nii.gz" for case, (_, label) in cases.items() if not label]
    described = {"name": "Toy", "labels": LABELS, "training": training, "test": test} | listing
    return {"T/dataset.json": json.dumps(described).encode(), **found}


def member(path: Path, data: bytes) -> Member:
    """A scan's bytes as a file of their own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return Member(path, path.name, 0, len(data), hashlib.sha256(data).hexdigest())


def case(folder: Path, image: bytes, label: bytes | None = None, name: str = "c") -> CaseSource:
    """A case of one or two files of their own."""
    labelled = None if label is None else member(folder / f"{name}-label.nii.gz", label)
    return CaseSource(name, member(folder / f"{name}.nii.gz", image), labelled)


def refusal(function: Callable[..., Any], *arguments: Any) -> str:
    """The code of the error that the call ends with, or "" when it ends well; others pass through."""
    try:
        function(*arguments)
    except LiversegError as error:
        return str(error)[:5]
    return ""


def affine(
    code: str = "RAS", spacing: tuple[float, ...] = (1, 1, 1), turn: np.ndarray | None = None
) -> np.ndarray:
    """Stored axes that run towards these ends of the patient, then turned as a whole."""
    matrix = np.zeros((4, 4))
    for axis, letter in enumerate(code):
        row = next(k for k, pair in enumerate(("LR", "PA", "IS")) if letter in pair)
        matrix[row, axis] = spacing[axis] * (1 if letter in "RAS" else -1)
    matrix[:3, :3] = (np.eye(3) if turn is None else turn) @ matrix[:3, :3]
    matrix[:, 3] = (-37.5, 12.25, 80, 1)
    return matrix


def ball(shape: tuple[int, int, int] = (20, 18, 16)) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image and a label of a liver ball with a tumour inside."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    label = ((radius < 0.7).astype(np.uint8) + (radius < 0.3)).astype(np.uint8)
    noise = np.random.default_rng(0).normal(0, 20, shape)
    return np.rint(label * 50 + noise).astype(np.int16), label


@pytest.fixture(scope="session")
def build() -> SimpleNamespace:
    """The builders of this file."""
    functions = (nifti, zipped, tar, members, member, case, refusal, affine, ball, train_job, stored_case)
    return SimpleNamespace(**{function.__name__: function for function in functions})


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real files; skips where there is none."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("LIVERSEG_REAL_DATA", beside))
    if not folder.is_dir():
        pytest.skip("no real files: set LIVERSEG_REAL_DATA")
    return folder


def train_job(cases: Sequence[Path], told: Mapping[str, Any] | None = None, **changes: Any) -> TrainJob:
    """A training of seconds, with changes to its recipe; `told` are other fields of the job."""
    recipe = {
        "network": {"channels": (4, 8), "residual_units": 1, "norm": "batch"},
        "augment": {"affine_probability": 0.5, "noise_probability": 0.5},
        "patch_size": (16, 16, 8),
        "batch_size": 2,
        "steps": 6,
        "checkpoint_every": 3,
        "log_every": 2,
        **changes,
    }
    config = TrainConfig.model_validate(recipe)
    job = TrainJob(cases, config, IngestConfig(), ComputeConfig(device="cpu"), "data")
    return dataclasses.replace(job, **(told or {}))


def stored_case(
    folder: Path, image: np.ndarray, label: np.ndarray, spacing: tuple[float, ...] = (1, 1, 1)
) -> Path:
    """Store a case as ingest does, with every voxel's position."""
    writer = CaseWriter(folder, Grid(label.shape, np.diag([*spacing, 1.0])), labelled=True)
    for start in range(0, label.shape[2], CHUNK):
        writer.write_slab(start, *(part.T[start : start + CHUNK] for part in (image, label)))
    positions = {c: np.argwhere(label == c).astype(np.int32) for c in range(3)}
    voxels = np.bincount(label.ravel(), minlength=3).tolist()
    writer.finish(folder.name, positions, {"fingerprint": {"voxels": voxels}})
    return folder


@pytest.fixture(scope="session")
def stored_cases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two stored cases: a bright box, in it a brighter one."""
    folders = []
    for i in range(2):
        label = np.zeros((24, 20, 16), np.uint8)
        label[4 + i : 16, 4:14, 3:12] = 1
        label[6 + i : 10, 6:10, 5:9] = 2
        noise = np.random.default_rng(i).normal(0, 10, label.shape)
        image = (np.array([-100, 60, 160])[label] + noise).astype(np.int16)
        folders.append(stored_case(tmp_path_factory.mktemp("cases") / f"case-{i}", image, label))
    return folders


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small only wait for each other's threads; processes that are killed do the same."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
