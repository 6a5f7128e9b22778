"""The same source gives the same bytes, whoever ingests it, with how many, and wherever it lies."""

import functools
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from flows.runners import open_runner
from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.cases.ingest import ingest_case
from liverseg_core.config import ComputeConfig, IngestConfig, RemoteConfig
from liverseg_core.phantom.dataset import phantom_case
from liverseg_core.sources import http_ranges
from liverseg_core.sources.source import Source, open_source

pytestmark = [pytest.mark.slow, pytest.mark.whole]

SIZE = (56, 48, 70)
CONFIG = IngestConfig(spacing_mm=(4, 4, 2.5))
"""More than one chunk along every axis, and a slab that is not full."""
CASES: dict[str, tuple[str, str, Callable[[bytes], bytes]]] = {
    "upwards": ("LPS", "<", lambda raw: gzip.compress(raw, 1)),
    "flipped": ("RAI", "<", lambda raw: gzip.compress(raw, 6)),
    "permuted": ("SPL", "<", gzip.compress),
    "plain": ("RPS", "<", bytes),
    "big-endian": ("LAI", ">", gzip.compress),
    "unlabelled": ("ASL", ">", bytes),
    "members": ("RAS", "<", lambda raw: gzip.compress(raw[:5000]) + gzip.compress(raw[5000:])),
}


def stored(volume: np.ndarray, affine: np.ndarray, code: str, order: str) -> bytes:
    """A NIfTI file with its axes and bytes in this order."""
    image = nib.Nifti1Image(volume, affine)
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(code))
    image = image.as_reoriented(turn)
    header = image.header.as_byteswapped(order)
    return bytes(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, header).to_bytes())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Decathlon tar with a case of every kind."""
    members: dict[str, bytes] = {}
    training, test = [], []
    for index, (name, (code, order, pack)) in enumerate(CASES.items()):
        image, label, affine = phantom_case(0, index, SIZE)
        where = f"images{'Ts' if name == 'unlabelled' else 'Tr'}/{name}.nii.gz"
        members[where] = pack(stored(image, affine, code, order))
        if name == "unlabelled":
            test.append(where)
        else:
            members[f"labelsTr/{name}.nii.gz"] = pack(stored(label, affine, code, order))
            training.append({"image": where, "label": f"labelsTr/{name}.nii.gz"})
    labels = {"0": "background", "1": "liver", "2": "cancer"}
    listing = {"name": "Kinds", "labels": labels, "training": training, "test": test}
    path = tmp_path_factory.mktemp("kinds") / "kinds.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in {"dataset.json": json.dumps(listing).encode(), **members}.items():
            entry = tarfile.TarInfo(f"Task03_Liver/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


@pytest.fixture
def everywhere(
    dataset: Path, s3_server: Any, secure_range_server: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Source]:
    """The tar on disk, on S3 and behind HTTPS; worker processes started later trust its certificate."""
    served, certificate = secure_range_server
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    http_ranges._trust.cache_clear()
    options = RemoteConfig(
        allowed_hosts=("127.0.0.1", "localhost"), endpoint=s3_server.url, anonymous=True, backoff_s=0.01
    )
    served.files["/kinds.tar"] = dataset.read_bytes()
    s3_server.put("data", "kinds.tar", dataset.read_bytes())
    return {
        "disk": open_source(str(dataset)),
        "s3": open_source("s3://data/kinds.tar", options=options),
        "https": open_source(f"{served.url}/kinds.tar", options=options),
    }


def digests(store: Path) -> dict[str, str]:
    """SHA-256 of every stored file; manifests tell the time, so they are left out."""
    files = (
        path for path in store.glob("cases/[!.]*/**/*") if path.is_file() and path.name != "manifest.json"
    )
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_workers_and_sources_change_no_byte(everywhere: dict[str, Source], tmp_path: Path) -> None:
    expected: dict[str, str] = {}
    for workers in (0, 1, 2, 8):
        with open_runner(ComputeConfig(workers=workers)) as runner:
            for place, source in everywhere.items():
                store = tmp_path / f"{place}-{workers}"
                work = functools.partial(ingest_case, config=CONFIG, store=LocalStore(store))
                outcomes = list(runner.map(work, source.cases))
                assert not [outcome.error for outcome in outcomes if outcome.error]
                found = digests(store)
                expected = expected or found
                assert found == expected, f"{workers} workers, from {place}"
    assert len({name.split("/")[1] for name in expected}) == len(CASES)
    shards = [name for name in expected if "/image.ome.zarr/0/c/" in name]
    assert len(shards) >= 2 * len(CASES)
