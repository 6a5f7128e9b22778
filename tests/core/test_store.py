"""A stored case: viewers open it, boxes come from anywhere, and no damage stays unnamed."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import ome_zarr_models.v05
import pytest
import zarr
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader

from liverseg_core.artifacts.artifact import Artifact, load, verify
from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.cases.case_writer import slabs
from liverseg_core.cases.ingest import ingest_case
from liverseg_core.cases.store import CHUNK, IMAGE, open_case, read_volume
from liverseg_core.config import IngestConfig
from liverseg_core.errors import LiversegError

SHAPE = (70, 40, 66)
"""Two chunks along x and z, one along y."""


@pytest.fixture(scope="module")
def volume() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    label = np.zeros(SHAPE, np.uint8)
    label[10:50, 5:30, 20:66], label[20:25, 10:15, 30:35] = 1, 2
    return rng.integers(-1024, 1024, SHAPE).astype(np.int16), label


@pytest.fixture
def stored(build: SimpleNamespace, tmp_path: Path, volume: tuple[np.ndarray, np.ndarray]) -> Artifact:
    matrix = build.affine(spacing=(0.8, 1, 2.5))
    image, label = (build.zipped(build.nifti(part, matrix)) for part in volume)
    return ingest_case(
        build.case(tmp_path, image, label), IngestConfig(spacing_mm=None), LocalStore(tmp_path / "store")
    )


def test_viewers_open_it(stored: Artifact, volume: tuple[np.ndarray, np.ndarray]) -> None:
    image, label = volume
    group = zarr.open_group(stored.path / IMAGE, mode="r")
    model = ome_zarr_models.v05.Image.from_zarr(group)
    (scale,) = model.ome_attributes.multiscales
    assert [(axis.name, axis.unit) for axis in scale.axes] == [(name, "millimeter") for name in "zyx"]
    towards = [axis.model_dump()["orientation"]["value"] for axis in scale.axes]
    assert towards == ["inferior-to-superior", "posterior-to-anterior", "left-to-right"], "RFC-4 of RAS+"
    size, place = scale.datasets[0].coordinateTransformations
    assert (size.scale, place.translation) == (
        pytest.approx([2.5, 1, 0.8]),
        pytest.approx([80, 12.25, -37.5]),
    )
    assert model.labels is not None
    assert model.labels.ome_attributes.labels == ["anatomy"]
    anatomy = ome_zarr_models.v05.ImageLabel.from_zarr(group["labels/anatomy"])
    described = anatomy.ome_attributes.image_label
    assert {color.label_value for color in described.colors} == {1, 2}
    assert (stored.path / IMAGE / "labels/anatomy" / described.source.image).resolve() == stored.path / IMAGE
    nodes = list(Reader(parse_url(stored.path / IMAGE))())
    np.testing.assert_array_equal(nodes[0].data[0], image.T)
    found = next(node for node in nodes if node.data and node.data[0].dtype == np.uint8)
    np.testing.assert_array_equal(found.data[0], label.T)


def test_plain_zarr_reads_it(stored: Artifact, volume: tuple[np.ndarray, np.ndarray]) -> None:
    """As a viewer without our code does: through the metadata alone."""
    group = zarr.open_group(stored.path / IMAGE, mode="r")
    ome = group.attrs["ome"]
    array = group[ome["multiscales"][0]["datasets"][0]["path"]]
    np.testing.assert_array_equal(array[:], volume[0].T)
    assert array.metadata.dimension_names == ("z", "y", "x")
    np.testing.assert_array_equal(
        group["labels"][group["labels"].attrs["ome"]["labels"][0]]["0"][:], volume[1].T
    )


def test_opened_case(stored: Artifact, volume: tuple[np.ndarray, np.ndarray]) -> None:
    case = open_case(stored.path)
    image, label = volume
    assert (case.name, case.grid.shape) == ("c", SHAPE)
    np.testing.assert_allclose(case.grid.affine, np.array(stored.facts["native_affine"]), atol=1e-12)
    for array, expected in ((case.image, image), (case.label, label)):
        whole = read_volume(array)
        np.testing.assert_array_equal(whole, expected)
        assert whole.flags.f_contiguous, "x is fastest"
    assert case.fingerprint == stored.facts["fingerprint"]


def test_a_shard_holds_a_slab_and_empty_chunks_are_written(build: SimpleNamespace, tmp_path: Path) -> None:
    nothing = build.zipped(build.nifti(np.zeros((130, 3, 130), np.int16), np.diag([1, 1, 1, 1.0])))
    stored = ingest_case(
        build.case(tmp_path, nothing, nothing), IngestConfig(), LocalStore(tmp_path / "store")
    )
    for name in ("0", "labels/anatomy/0"):
        folder = stored.path / IMAGE / name
        shards = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        assert shards == ["c/0/0/0", "c/1/0/0", "c/2/0/0", "zarr.json"]
        inner = json.loads((folder / "zarr.json").read_text())["codecs"][0]["configuration"]
        assert inner["chunk_shape"] == [CHUNK] * 3
        assert [codec["name"] for codec in inner["codecs"]][-1] == "crc32c"


def damage(path: Path, how: str, rng: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    if how == "delete":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "truncate":
        path.write_bytes(content[: int(rng.integers(len(content)))])
    else:
        content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)


def read_all(folder: Path) -> None:
    case = open_case(folder)
    read_volume(case.image)
    read_volume(case.label)


@pytest.mark.parametrize("how", ["flip", "truncate", "empty", "delete"])
def test_damage_is_named_before_use(stored: Artifact, how: str) -> None:
    """Of every class of file, by reading as well as by verifying; an unlisted file by verifying."""
    rng = np.random.default_rng(0)
    files = sorted(path for path in stored.path.rglob("*") if path.is_file())
    assert len(files) == 12
    for path in files:
        whole = path.read_bytes()
        for _ in range(8 if how in ("flip", "truncate") else 1):
            damage(path, how, rng)
            if path.name == "manifest.json" and how == "delete":
                assert load(stored.path) is None
            else:
                with pytest.raises(LiversegError, match=r"LS50[124]"):
                    read_all(stored.path)
                with pytest.raises(LiversegError, match=r"LS50[12]"):
                    verify(load(stored.path))
            path.write_bytes(whole)
    read_all(stored.path)
    verify(stored)
    (stored.path / IMAGE / "0" / "c" / "9").write_bytes(b"x")
    with pytest.raises(LiversegError, match=r"LS502.*not in the manifest"):
        verify(stored)


def test_a_large_chunk_file_s_own_checksums_count(stored: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """What opening does not read whole, the chunk checksums name on reading."""
    monkeypatch.setattr("liverseg_core.cases.store.SMALL_FILE", 0)
    rng = np.random.default_rng(1)
    chunk = stored.path / IMAGE / "0" / "c" / "0" / "0" / "0"
    whole = chunk.read_bytes()
    for _ in range(40):
        damage(chunk, "flip", rng)
        case = open_case(stored.path)
        with pytest.raises(LiversegError, match="LS504"):
            read_volume(case.image)
        chunk.write_bytes(whole)


@pytest.mark.parametrize("falling", [False, True])
def test_slabs(falling: bool) -> None:
    planes = [np.full((2, 3), z) for z in range(CHUNK + 5)]
    in_order = planes[::-1] if falling else planes
    found = {start: slab.copy() for start, slab in slabs(in_order, len(planes), falling)}
    assert list(found) == ([CHUNK, 0] if falling else [0, CHUNK])
    np.testing.assert_array_equal(np.concatenate([found[0], found[CHUNK]]), planes)
    assert list(slabs([], 0)) == []
