"""A scan is known by its voxels: the same however it lies and is written, and no other."""

import itertools
import warnings

import numpy as np
import pytest

from liverseg_core.cases.scan_identity import ScanIdentifier, identify

SHAPES = [(5, 7, 9), (6, 6, 9), (9, 6, 6), (6, 6, 6), (1, 1, 30), (4200, 2, 3), (1, 1, 1)]


def scan(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(-1024, 3072, shape).astype(np.int16)


def turned(volume: np.ndarray) -> list[np.ndarray]:
    """All 48 ways to store it; views."""
    steps = [*itertools.product((1, -1), repeat=3)]
    return [
        volume.transpose(order)[::x, ::y, ::z]
        for order in itertools.permutations(range(3))
        for x, y, z in steps
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_turned_scan_is_the_same_scan(shape: tuple[int, ...]) -> None:
    with warnings.catch_warnings(action="error"):
        assert {identify(lying) for lying in turned(scan(shape))} == {identify(scan(shape))}


WRITTEN = {
    "floats": lambda v: v.astype(np.float32),
    "floats, nearly": lambda v: v.astype(np.float64) + np.linspace(-0.49, 0.49, v.size).reshape(v.shape),
    "by a slope": lambda v: (np.rint(v / 0.0625 + 7) * 0.0625 - 7 * 0.0625).astype(np.float32),
    "the other byte order": lambda v: v.astype(">i2"),
    "wide": lambda v: v.astype(np.int64),
    "in Fortran's order": np.asfortranarray,
    "without its intercept": lambda v: v + np.int16(1024),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_scan_written_otherwise_is_the_same_scan(name: str) -> None:
    assert identify(WRITTEN[name](scan((6, 5, 7)))) == identify(scan((6, 5, 7)))


@pytest.mark.parametrize("shape", [(5, 7, 9), (6, 6, 9), (6, 6, 6)])
def test_any_other_scan_is_another(shape: tuple[int, ...]) -> None:
    volume, rng = scan(shape), np.random.default_rng(1)
    found = {identify(volume).voxels}
    for n in range(60):
        other = volume.copy()
        here, there = (tuple(rng.integers(0, shape)) for _ in range(2))
        if n % 2:  # two voxels change places: the histogram stays
            other[here], other[there] = volume[there], volume[here]
        else:
            other[here] += rng.integers(1, 100)
        found.add(identify(other).voxels)
    assert len(found) >= 60  # once or twice both places may be one
    mirrored = np.concatenate([volume[::-1, :, :2], volume[:, :, 2:]], axis=2)  # a part of it alone
    assert identify(mirrored).histogram == identify(volume).histogram
    assert identify(mirrored).voxels not in found


def test_planes_may_come_from_either_end() -> None:
    volume = scan((6, 5, 7))
    falling = ScanIdentifier(6)
    for plane in volume[::-1]:
        falling.add(plane)
    assert falling.identity() == identify(volume)
