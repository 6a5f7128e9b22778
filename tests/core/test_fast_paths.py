"""Every fast path gives what the plain way gives, whatever it is asked for.

A fast path leaves out work whose result is known, and never computes something else.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from torch import nn

from liverseg_core.cases.case_writer import CaseWriter, slabs
from liverseg_core.cases.chunk_reader import StoredVolume, read_box
from liverseg_core.cases.store import CHUNK, Case, open_case
from liverseg_core.config import EvaluateConfig, IngestConfig, NetworkConfig
from liverseg_core.inference.inference import predict_planes
from liverseg_core.inference.windows import tile
from liverseg_core.models.model import Model, ModelSpec
from liverseg_core.training.augment import pull_matrix
from liverseg_core.training.warp import Plan, margin, warp
from liverseg_core.volumes.geometry import Grid, axis_maps, resampled_grid
from liverseg_core.volumes.resample import resample_image, resample_label, resample_probabilities

Triple = tuple[int, int, int]
Flips = tuple[bool, bool, bool]
flips = st.tuples(*[st.booleans()] * 3)


def triple(low: int, high: int) -> "st.SearchStrategy[Triple]":
    return st.tuples(*[st.integers(low, high)] * 3)


def sparse_label(shape: Triple, seed: int) -> np.ndarray:
    """A liver box with a tumour somewhere; most chunks hold one class."""
    rng, label = np.random.default_rng(seed), np.zeros(shape, np.uint8)
    for c in (1, 2):
        low = [int(rng.integers(n)) for n in shape]
        label[tuple(slice(a, a + 30 // c) for a in low)] = c
    return label


# The shard writer against Zarr's own.


def chunks(folder: Path, count: int) -> list[list[bytes]]:
    """Of each shard, its packed chunks in the order of its index."""
    found = []
    for path in sorted(folder.glob("c/*/0/0")):
        content = path.read_bytes()
        index = np.frombuffer(content[-16 * count - 4 : -4], "<u8").reshape(count, 2)
        found.append([content[at : at + size] for at, size in index.tolist()])
    return found


@given(triple(1, 140), st.integers(0, 99))
@example((70, 40, 66), 0)
@example((64, 128, 64), 1)
@settings(max_examples=15, deadline=None)
def test_shards_are_what_zarr_would_write(
    tmp_path_factory: pytest.TempPathFactory, shape: Triple, seed: int
) -> None:
    """Chunk by chunk, since Zarr puts them in another order; and Zarr reads what was written."""
    label = sparse_label(shape, seed)
    image = np.random.default_rng(seed).integers(-1024, 1024, shape).astype(np.int16)
    folder, theirs = tmp_path_factory.mktemp("ours"), tmp_path_factory.mktemp("theirs")
    writer = CaseWriter(folder, Grid(shape, np.eye(4)), labelled=True)
    for (start, one), (_, other) in zip(slabs(image.T, shape[2]), slabs(label.T, shape[2]), strict=True):
        writer.write_slab(start, one, other)
    for name, volume in {"0": image, "labels/anatomy/0": label}.items():
        place = folder / "image.ome.zarr" / name
        ours = zarr.open_array(place, mode="r")
        np.testing.assert_array_equal(ours[:], volume.T)
        plain = zarr.create_array(
            theirs / name,
            data=volume.T,
            chunks=ours.chunks,
            shards=ours.shards,
            compressors=ours.compressors,
            config={"write_empty_chunks": True},
        )
        assert plain.metadata.to_dict()["codecs"] == ours.metadata.to_dict()["codecs"]
        count = -(-shape[0] // CHUNK) * -(-shape[1] // CHUNK)
        assert chunks(place, count) == chunks(theirs / name, count)


# The chunk reader against Zarr's.

SHAPE = (150, 70, 140)
"""Chunks: three along x, two along y, three along z."""


@pytest.fixture(scope="module")
def case(build: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Case:
    label = np.zeros(SHAPE, np.uint8)
    label[40:100, 20:60, 30:90], label[60:70, 30:40, 50:60] = 1, 2
    image = np.random.default_rng(0).integers(-1024, 1024, SHAPE, np.int16)
    return open_case(build.stored_case(tmp_path_factory.mktemp("case") / "case", image, label))


@pytest.fixture(scope="module")
def padded(case: Case) -> dict[str, np.ndarray]:
    """What Zarr reads, with a margin around it."""
    return {kind: np.pad(getattr(case, kind)[...].T, 300, constant_values=7) for kind in ("image", "label")}


@given(triple(-80, 160), triple(0, 180))
@example((0, 0, 0), SHAPE)
@example((60, 3, 60), (9, 9, 6))
@example((-5, -6, -7), (10, 10, 10))
@example((146, 65, 134), (20, 20, 20))
@example((-9, -9, -9), (179, 99, 179))
@example((150, 0, 0), (5, 5, 5))
@example((0, -9, 0), (5, 9, 5))
@example((5, 5, 5), (0, 3, 3))
@settings(max_examples=40, deadline=None)
def test_boxes_are_those_that_zarr_reads(
    case: Case, padded: dict[str, np.ndarray], start: Triple, size: Triple
) -> None:
    for kind, around in padded.items():
        array = getattr(case, kind)
        expected = around[tuple(slice(300 + a, 300 + a + n) for a, n in zip(start, size, strict=True))]
        for source in (StoredVolume.of(array), around[(slice(300, -300),) * 3].T):
            found = read_box(source, start, size, 7)
            np.testing.assert_array_equal(found, expected)
            assert (found.dtype, found.T.flags.c_contiguous) == (array.dtype, True)


def test_whole_volumes(case: Case) -> None:
    volume = StoredVolume.of(case.image)
    assert volume.nbytes == case.image.nbytes
    np.testing.assert_array_equal(volume.read(), case.image[...].T)


# Resampling plane by plane against the whole volume at once.

AFFINE = np.array([[0.8, 0, 0, -20], [0, 0.9, 0, 30], [0, 0, 2.5, 100], [0, 0, 0, 1.0]])
spacings = st.tuples(*[st.sampled_from([0.5, 0.7, 1.0, 1.3, 2.5, 4.0])] * 3)


def planes(volume: np.ndarray) -> list[np.ndarray]:
    return [np.ascontiguousarray(volume[:, :, z].T) for z in range(volume.shape[2])]


def whole(result: Any) -> np.ndarray:
    return np.stack(list(result)).T


def stored_against(volume: np.ndarray, against: Flips) -> np.ndarray:
    return volume[tuple(slice(None, None, -1 if flip else 1) for flip in against)]


def at_once(volume: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """The last three axes linearly, each by a matrix that says what every output voxel takes of which."""
    weights = []
    for found, size in zip(axis_maps(source, target), source.shape, strict=True):
        upper = np.minimum(found.lower + 1, size - 1)
        share = found.weight.astype(float)[:, None]
        weights.append(np.eye(size)[found.lower] * (1 - share) + np.eye(size)[upper] * share)
    return np.einsum("xi,yj,zk,...ijk->...xyz", *weights, volume, optimize=True)


@given(triple(1, 12), spacings, flips, st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_images_plane_by_plane(shape: Triple, spacing: Any, against: Flips, seed: int) -> None:
    image = np.random.default_rng(seed).integers(-1024, 3071, shape).astype(np.int16)
    source = Grid(shape, AFFINE)
    target = resampled_grid(source, spacing)
    found = whole(resample_image(planes(stored_against(image, against)), source, target, against))
    found = found[:, :, ::-1] if against[2] else found
    assert np.abs(found - at_once(image, source, target)).max() <= 0.501


@given(triple(1, 8), spacings, flips, st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_labels_plane_by_plane(shape: Triple, spacing: Any, against: Flips, seed: int) -> None:
    """The class with the largest linear weight, ties to the higher; or that of the nearest voxel."""
    label = np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)
    source = Grid(shape, AFFINE)
    target = resampled_grid(source, spacing)
    stored = planes(stored_against(label, against))
    voted, nearest = (
        whole(resample_label(stored, source, target, method, against)) for method in ("vote", "nearest")
    )
    if against[2]:
        voted, nearest = voted[:, :, ::-1], nearest[:, :, ::-1]
    weights = at_once(np.eye(3)[label].transpose(3, 0, 1, 2), source, target)
    best = weights.max(0)
    assert np.all(np.take_along_axis(weights, voted[None].astype(int), 0)[0] >= best - 1e-5)
    tied = np.abs(weights - best) < 1e-7
    clear = np.sort(weights, 0)[-1] - np.sort(weights, 0)[-2] > 1e-5
    assert np.all((voted == 2 - np.argmax(tied[::-1], 0)) | ~(clear | (tied.sum(0) > 1))), "ties go up"
    picks = [f.lower + np.floor(f.weight + np.float32(0.5)).astype(int) for f in axis_maps(source, target)]
    picks = [np.minimum(pick, n - 1) for pick, n in zip(picks, shape, strict=True)]
    np.testing.assert_array_equal(nearest, label[np.ix_(*picks)])


@given(triple(1, 8), spacings, st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_probabilities_plane_by_plane(shape: Triple, spacing: Any, seed: int) -> None:
    source = Grid(shape, AFFINE)
    target = resampled_grid(source, spacing)
    classes = np.random.default_rng(seed).random((3, *shape), np.float32)
    found = np.stack(list(resample_probabilities(classes.transpose(3, 0, 2, 1), source, target)))
    np.testing.assert_allclose(found.transpose(1, 3, 2, 0), at_once(classes, source, target), atol=1e-5)


@given(spacings, flips, st.sampled_from(["linear", "cubic"]), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_stored_direction_changes_no_bit(spacing: Any, against: Flips, method: Any, seed: int) -> None:
    """Planes as a file has them, from the top where z is flipped, give what the canonical ones give."""
    rng, source = np.random.default_rng(seed), Grid((19, 16, 13), AFFINE)
    image = rng.integers(-1024, 3071, source.shape).astype(np.int16)
    label = np.kron(rng.integers(0, 3, (5, 4, 4)), np.ones((4, 4, 4)))[:19, :16, :13].astype(np.uint8)
    target = resampled_grid(source, spacing)
    order = slice(None, None, -1 if against[2] else 1)
    ours = whole(resample_image(planes(stored_against(image, against)), source, target, against, method))
    expected = whole(resample_image(planes(image), source, target, method=method))
    np.testing.assert_array_equal(ours[:, :, order], expected)
    ours = whole(resample_label(planes(stored_against(label, against)), source, target, "vote", against))
    np.testing.assert_array_equal(
        ours[:, :, order], whole(resample_label(planes(label), source, target, "vote"))
    )


# The warp kernel against scipy.

SIZE = (20, 24, 16)
OBLIQUE = np.array([[1.0, 0.2, 0, -30], [-0.2, 1.1, 0.1, 12], [0, -0.1, 2.5, 80], [0, 0, 0, 1]])
turns = st.builds(
    pull_matrix,
    st.tuples(*[st.floats(0.8, 1.2)] * 3).map(np.array),
    st.tuples(*[st.floats(-20, 20)] * 3).map(np.array),
    st.sampled_from([np.eye(4), np.diag([-1.0, 1, 2, 1]), OBLIQUE]),
)


@given(st.none() | turns, flips, st.sampled_from([(-200.0, 300.0), (-160.5, 240.25)]))
@settings(max_examples=30, deadline=None)
def test_a_patch_is_what_scipy_gathers(turn: Any, against: Flips, window: tuple[float, float]) -> None:
    """Turned, mirrored or both; mirrors alone, too, which the kernel copies."""
    matrix = (np.eye(3) if turn is None else turn) * [-1.0 if flip else 1.0 for flip in against]
    x, y, z = np.indices(np.add(SIZE, np.multiply(2, margin(matrix, SIZE)))) / 3.0
    image = np.rint(250 * np.sin(x + 0.5 * z) + 200 * np.cos(y) + 50).astype(np.int16)
    label = (image > 100).astype(np.uint8) + (image > 300)
    centre = (np.array(image.shape)[:, None] - 1) / 2
    places = matrix @ (np.indices(SIZE).reshape(3, -1) - (np.array(SIZE)[:, None] - 1) / 2) + centre

    low, high = window
    inside = np.clip(image, np.floor(low), np.ceil(high)).astype(float)
    expected = np.clip(2 * (map_coordinates(inside, places, order=1) - low) / (high - low) - 1, -1, 1)
    shares = np.array([map_coordinates((label == c).astype(float), places, order=1) for c in range(3)])
    clear = np.sort(shares, axis=0)[-1] - np.sort(shares, axis=0)[-2] > 1e-3
    between = np.abs(places - np.floor(places) - 0.5).min(axis=0) < 1e-3
    for vote in (False, True):
        patch, classes = np.empty(SIZE[::-1], np.float32), np.empty(SIZE[::-1], np.uint8)
        warp((image.T.copy(), label.T.copy()), matrix, Plan(window, vote), (patch, classes))
        np.testing.assert_allclose(patch.T.ravel(), expected, atol=2e-4)
        if vote:
            np.testing.assert_array_equal(classes.T.ravel()[clear], shares.argmax(axis=0)[clear])
        else:
            nearest = label[tuple(np.rint(places).astype(int))]
            np.testing.assert_array_equal(classes.T.ravel()[~between], nearest[~between])


# Prediction that skips air against prediction that asks of every window.

WINDOW = (16, 16, 8)


class Tissue(nn.Module):
    """Certain that what is darkest is background, and of the rest as much as it is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.asked += len(x)
        return torch.cat([torch.where(x > -1, -x, 60), x, 2 * x], 1)


@given(
    triple(1, 50),
    st.lists(st.tuples(triple(0, 49), triple(1, 30)), max_size=2),
    st.sampled_from([0.0, 0.25, 0.5]),
    st.sampled_from(["gaussian", "hann", "constant"]),
    st.integers(1, 5),
)
@example((64, 16, 24), [((40, 0, 0), (10, 16, 24))], 0.0, "gaussian", 4)
@settings(max_examples=40, deadline=None)
def test_air_that_is_skipped_is_what_the_network_says_of_air(
    shape: Triple, tissue: list[tuple[Triple, Triple]], overlap: float, weights: Any, batch_size: int
) -> None:
    image = np.full(shape, -1000, np.int16, order="F")
    for start, size in tissue:
        image[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = 100
    network = Tissue()
    spec = ModelSpec(
        network=NetworkConfig(channels=(4, 8)),
        activation="softmax",
        patch_size=WINDOW,
        window_hu=(-200, 300),
        ingest=IngestConfig(),
        data_key="data",
    )
    model = Model(network.eval(), spec, torch.device("cpu"))
    found, asked = [], []
    for air_hu in (-500, None):
        network.asked = 0
        config = EvaluateConfig(air_hu=air_hu, overlap=overlap, weights=weights, batch_size=batch_size)
        found.append(np.stack(list(predict_planes(model, image, config))))
        asked.append(network.asked)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    windows = [
        image[x : x + WINDOW[0], y : y + WINDOW[1], z : z + WINDOW[2]]
        for tiling in [tile(shape, WINDOW, overlap)]
        for x, y in tiling.row
        for z in tiling.starts[2]
    ]
    assert asked == [sum(bool((window >= -500).any()) for window in windows), len(windows)]
