"""Resampling: exact where it can be, linear as others are, labels never mixed."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from liverseg_core.volumes import compiled, plain
from liverseg_core.volumes.geometry import Grid, axis_maps, canonical_orientation, resampled_grid
from liverseg_core.volumes.resample import resample_image, resample_label, resample_probabilities

SHAPE = (19, 16, 13)
AFFINE = np.array([[0.8, 0, 0, -20], [0, 0.9, 0, 30], [0, 0, 2.5, 100], [0, 0, 0, 1.0]])
SOURCE = Grid(SHAPE, AFFINE)
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(-1024, 3071, SHAPE).astype(np.int16)
spacings = st.tuples(*[st.sampled_from([0.5, 0.7, 1.0, 1.3, 2.5, 4.0])] * 3)


def blobs(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Labels with structures a few voxels wide."""
    coarse = np.random.default_rng(seed).integers(0, 3, [-(-n // 4) for n in shape]).astype(np.uint8)
    for axis in range(3):
        coarse = np.repeat(coarse, 4, axis)
    return coarse[tuple(slice(n) for n in shape)]


def planes(volume: np.ndarray) -> Iterator[np.ndarray]:
    return (np.ascontiguousarray(volume[:, :, z].T) for z in range(volume.shape[2]))


def whole(result: Iterator[np.ndarray]) -> np.ndarray:
    return np.stack(list(result), axis=2).transpose(1, 0, 2)


def image_on(volume: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    return whole(resample_image(planes(volume), source, target))


def label_on(volume: np.ndarray, source: Grid, target: Grid, method: str = "vote") -> np.ndarray:
    return whole(resample_label(planes(volume), source, target, method))


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.5, 1.7, 1.25), (3, 3, 3), (0.8, 0.9, 0.4)])
def test_image_is_simpleitk_s_linear(spacing: tuple[float, float, float]) -> None:
    target = resampled_grid(SOURCE, spacing)
    ours = image_on(IMAGE, SOURCE, target)

    def place(image: SimpleITK.Image, grid: Grid) -> None:
        image.SetSpacing(grid.spacing_mm)
        image.SetOrigin(grid.affine[:3, 3].tolist())

    moving, fixed = (
        SimpleITK.GetImageFromArray(IMAGE.T.astype(np.float64)),
        SimpleITK.Image(target.shape, SimpleITK.sitkFloat64),
    )
    place(moving, SOURCE)
    place(fixed, target)
    theirs = SimpleITK.GetArrayFromImage(
        SimpleITK.Resample(moving, fixed, SimpleITK.Transform(), SimpleITK.sitkLinear, 1e9)
    ).T
    inside = theirs < 1e8
    assert inside.sum() > 0.3 * inside.size
    assert np.abs(ours - theirs)[inside].max() <= 0.51
    assert ours.min() >= IMAGE.min()
    assert ours.max() <= IMAGE.max()


@pytest.mark.parametrize("method", ["vote", "nearest"])
def test_identity_copies(method: str) -> None:
    same = resampled_grid(SOURCE, SOURCE.spacing_mm)
    np.testing.assert_array_equal(image_on(IMAGE, SOURCE, same), IMAGE)
    np.testing.assert_array_equal(label_on(blobs(SHAPE), SOURCE, same, method), blobs(SHAPE))
    extremes = np.array([-32768, 32767] * 6, np.int16).reshape(3, 2, 2)
    tiny = Grid(extremes.shape, AFFINE)
    np.testing.assert_array_equal(image_on(extremes, tiny, resampled_grid(tiny, tiny.spacing_mm)), extremes)


@given(spacings, st.tuples(*[st.booleans()] * 3))
@settings(max_examples=40, deadline=None)
def test_commutes_with_flips(spacing: tuple[float, float, float], flips: tuple[bool, bool, bool]) -> None:
    turned = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    target = resampled_grid(SOURCE, spacing)
    ours, flipped = image_on(IMAGE, SOURCE, target), image_on(IMAGE[turned], SOURCE, target)
    # rounding of halves is towards +∞ and float32 sums differ in their last bit
    assert np.abs(ours[turned].astype(int) - flipped).max() <= 1
    assert np.mean(ours[turned] == flipped) > 0.95
    label = blobs(SHAPE)
    np.testing.assert_array_equal(
        label_on(label, SOURCE, target)[turned], label_on(np.ascontiguousarray(label[turned]), SOURCE, target)
    )


@pytest.mark.parametrize("method", ["vote", "nearest"])
@pytest.mark.parametrize("finer", [(0.4, 0.45, 1.25), (0.27, 0.3, 0.8), (0.8, 0.3, 0.5)])
def test_labels_there_and_back(method: str, finer: tuple[float, float, float]) -> None:
    label = blobs(SHAPE)
    fine = resampled_grid(SOURCE, finer)
    back = label_on(label_on(label, SOURCE, fine, method), fine, SOURCE, method)
    if method == "nearest":
        np.testing.assert_array_equal(back[1:-1, 1:-1, 1:-1], label[1:-1, 1:-1, 1:-1])
    # a voxel well inside its class, away from where three classes meet, comes back for sure
    inside = np.ones(SHAPE, bool)
    for axis, step in itertools.product(range(3), (-1, 1)):
        inside &= np.roll(label, step, axis) == label
    core = (slice(1, -1),) * 3
    assert inside[core].mean() > 0.1
    np.testing.assert_array_equal(back[core][inside[core]], label[core][inside[core]])


def test_vote_keeps_thin_tumours_that_nearest_may_lose() -> None:
    label = np.zeros((9, 9, 9), np.uint8)
    label[:, :, 4] = 2
    source = Grid(label.shape, np.eye(4))
    target = resampled_grid(source, (1, 1, 1.8))
    assert (label_on(label, source, target) == 2).any()


@pytest.mark.parametrize("code", ["RAS", "LPS", "IRP", "SLA", "ASL", "PIR"])
@pytest.mark.parametrize("spacing", [None, (0.8, 0.45, 1.25)])
def test_probabilities_go_back_to_the_stored_grid(build: object, code: str, spacing: tuple | None) -> None:
    """One-hot labels at the scan's own spacing come back exactly, at a finer one away from borders."""
    label = blobs(SHAPE)
    stored = Grid(SHAPE, build.affine(code, (0.8, 0.9, 2.5)))
    orientation = canonical_orientation(stored.affine)
    canonical = orientation.canonical_grid(stored)
    target = resampled_grid(canonical, spacing or canonical.spacing_mm)
    there = label_on(np.ascontiguousarray(orientation.to_canonical(label)), canonical, target)
    one_hot = np.stack([c == there.T for c in range(3)], axis=1).astype(np.float32)  # (z, c, y, x)
    labels = [plane.argmax(0) for plane in resample_probabilities(one_hot, target, canonical)]
    back = orientation.from_canonical(np.stack(labels).T)
    assert back.shape == SHAPE
    if spacing is None:
        np.testing.assert_array_equal(back, label)
    else:
        assert np.mean(back == label) > 0.9


def test_a_reader_behind_the_planes_is_read_to_its_end() -> None:
    ended = []

    def source() -> Iterator[np.ndarray]:
        yield from planes(IMAGE)
        ended.append(True)

    flat = Grid((19, 16, 1), AFFINE)
    assert len(list(resample_image(source(), SOURCE, flat))) == 1
    assert ended


@pytest.mark.parametrize("flips", [(False, False, False), (True, False, True), (False, True, True)])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.5, 1.7, 1.25), (3, 3, 3), (0.8, 0.9, 0.4)])
def test_cubic_is_keys_convolution(
    spacing: tuple[float, float, float], flips: tuple[bool, bool, bool]
) -> None:
    """Against the textbook formula in float64, with the volume continued as a straight line."""
    target = resampled_grid(SOURCE, spacing)
    expected = IMAGE.astype(np.float64)
    for axis, found in enumerate(axis_maps(SOURCE, target)):
        longer = np.pad(
            expected, [(2, 2) if k == axis else (0, 0) for k in range(3)], "reflect", reflect_type="odd"
        )
        expected = 0
        for step in range(-1, 3):
            away = np.abs(found.weight.astype(float) - step)
            weight = np.where(
                away <= 1, 1.5 * away**3 - 2.5 * away**2 + 1, -0.5 * away**3 + 2.5 * away**2 - 4 * away + 2
            )
            shape = [-1 if k == axis else 1 for k in range(3)]
            expected = expected + np.take(longer, found.lower + 2 + step, axis) * weight.reshape(shape)
    stored = IMAGE[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    ours = whole(resample_image(planes(stored), SOURCE, target, flips, "cubic"))
    ours = ours[:, :, ::-1] if flips[2] else ours
    assert np.abs(ours - np.clip(expected, -32768, 32767)).max() <= 0.51


@pytest.mark.parametrize("method", ["linear", "cubic"])
@pytest.mark.parametrize("shape", [(19, 16, 13), (2, 1, 3), (1, 1, 1)])
def test_ramps_stay_ramps(method: str, shape: tuple[int, int, int]) -> None:
    """Between the outermost voxel centres, beyond which the last value is held."""
    source = Grid(shape, AFFINE)
    target = resampled_grid(source, (0.5, 1.1, 1.7))
    x, y, z = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    ramp = (100 * x - 200 * y + 300 * z).astype(np.int16)
    places = [np.asarray(found.lower + found.weight.astype(float)) for found in axis_maps(source, target)]
    x, y, z = np.meshgrid(*places, indexing="ij")
    ours = whole(resample_image(planes(ramp), source, target, method=method))
    assert np.abs(ours - (100 * x - 200 * y + 300 * z)).max() <= 0.51


def test_cubic_copies_and_stays_in_int16() -> None:
    same = resampled_grid(SOURCE, SOURCE.spacing_mm)
    np.testing.assert_array_equal(whole(resample_image(planes(IMAGE), SOURCE, same, method="cubic")), IMAGE)
    steps = np.repeat(np.array([-32768, 32767], np.int16), 8)[:, None, None] * np.ones((1, 4, 4), np.int16)
    source = Grid(steps.shape, AFFINE)
    ours = whole(
        resample_image(planes(steps), source, resampled_grid(source, (0.3, 0.9, 2.5)), method="cubic")
    )
    assert (ours.min(), ours.max()) == (-32768, 32767)
    assert np.all(np.diff(ours[:, 0, 0].astype(int)) >= 0), "clipped, not wrapped around"


def test_cubic_is_nearer_to_a_smooth_truth_than_linear() -> None:
    def wave(grid: Grid) -> np.ndarray:
        index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1)
        x, y, z = np.moveaxis(index @ grid.affine[:3, :3].T + grid.affine[:3, 3], -1, 0)
        return 500 * np.sin(x / 1.1) + 300 * np.cos(y / 1.4) + 400 * np.sin(z / 3.5)

    source = Grid((40, 36, 30), AFFINE)
    target = resampled_grid(source, (1, 1, 1))
    stored = np.rint(wave(source)).astype(np.int16)
    core = (slice(4, -4),) * 3
    linear, cubic = (
        np.abs(whole(resample_image(planes(stored), source, target, method=method)) - wave(target))[
            core
        ].mean()
        for method in ("linear", "cubic")
    )
    assert cubic < linear / 2


@given(
    st.tuples(*[st.integers(1, 40)] * 2),
    st.tuples(*[st.integers(1, 40)] * 2),
    st.sampled_from(["i2", "u1", "f4", "f8"]),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_numpys_loops_are_the_compiled_ones_to_the_bit(
    stored: tuple[int, int], wanted: tuple[int, int], dtype: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    low, high = (0, 255) if dtype == "u1" else (-32768, 32767)
    lower, upper = (rng.uniform(low, high, stored).astype(dtype) for _ in range(2))
    along = []
    for n, places in zip(stored, wanted, strict=True):
        first = rng.integers(0, n, places)
        taps = np.array([first, np.minimum(first + 1, n - 1)], np.uint32)
        along.append((taps, rng.random(places, np.float32)))
    along_y, along_x = along
    weight = np.float32(rng.random())
    pairs = []
    for loops in (plain, compiled):
        planes_ = [loops.linear_2d(plane, along_x, along_y) for plane in (lower, upper)]
        pairs.append([*planes_, loops.blend(*planes_, weight), loops.blend_to_int16(*planes_, weight)])
    for ours, theirs in zip(*pairs, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
