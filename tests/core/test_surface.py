"""Surface distances against brute force, MONAI and values derived by hand, on anisotropic voxels."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from liverseg_core.evaluation.surface import SurfaceDistances, surface, surface_distances

VOXEL_MM = (0.5, 0.8, 2.5)
SPACINGS = st.tuples(*[st.sampled_from([0.557, 0.7, 0.8, 1.0, 1.25, 2.5, 5.0])] * 3)
MASKS = hnp.arrays(np.bool_, st.just((6, 5, 4)))
NAMES = ("assd_mm", "rmsd_mm", "hd95_mm", "mssd_mm", "surface_dice_2mm")
OF_MONAI = tuple(name for name in NAMES if name != "rmsd_mm")


def box(shape: tuple[int, int, int], *ranges: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, np.bool_, "F")
    mask[tuple(slice(*one) for one in ranges)] = True
    return mask


def brute_surface(mask: np.ndarray, cut: bool = False) -> list[tuple[int, ...]]:
    """Voxels with a neighbour that is in the volume and not in the mask, or with `cut` beyond it."""
    steps = [step for step in itertools.product((-1, 0, 1), repeat=3) if sum(map(abs, step)) == 1]

    def is_outer(place: tuple[int, ...]) -> bool:
        around = (tuple(np.add(place, step)) for step in steps)
        return any(
            not mask[next_to] if all(0 <= at < n for at, n in zip(next_to, mask.shape, strict=True)) else cut
            for next_to in around
        )

    return [place for place in map(tuple, np.argwhere(mask)) if is_outer(place)]


def brute_force(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, ...]
) -> list[float | None]:
    """Every distance of every surface voxel to every one of the other's surface or cut."""
    masks = prediction, reference
    places, known = (
        [np.array(brute_surface(mask, cut)).reshape(-1, 3) * spacing_mm for mask in masks]
        for cut in (False, True)
    )
    if not (len(known[0]) and len(known[1]) and len(places[0]) + len(places[1])):
        return [None] * 5
    directed = [
        np.sqrt(((one[:, None] - other[None]) ** 2).sum(-1)).min(1)
        for one, other in zip(places, reversed(known), strict=True)
    ]
    both = [*directed[0], *directed[1]]
    hd95 = max(np.percentile(one, 95) for one in directed if len(one))
    within = sum(distance <= 2 + 1e-9 for distance in both)
    rms = math.sqrt(sum(distance**2 for distance in both) / len(both))
    return [sum(both) / len(both), rms, hd95, max(both), within / len(both)]


@given(MASKS, MASKS, SPACINGS)
def test_agrees_with_brute_force(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]
) -> None:
    found = surface_distances(prediction, reference, spacing_mm)
    expected = brute_force(prediction, reference, spacing_mm)
    assert [getattr(found, name) for name in NAMES] == pytest.approx(expected, abs=1e-6)


@given(MASKS)
def test_the_surface_is_what_erosion_takes(mask: np.ndarray) -> None:
    assert (surface(mask) == mask ^ ndimage.binary_erosion(mask, border_value=1)).all()


def blobs(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """A few smooth bodies away from the border."""
    noise = np.pad(np.random.default_rng(seed).standard_normal([n - 8 for n in shape]), 4)
    return ndimage.gaussian_filter(noise, 2) > 0.05


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_brute_force_on_bodies_that_the_volume_cuts_off(seed: int) -> None:
    inner = np.s_[6:-6, 5:-5, 4:-4]
    prediction, reference = blobs(seed, (26, 24, 20))[inner], blobs(seed + 50, (26, 24, 20))[inner]
    assert (surface(prediction) != prediction ^ ndimage.binary_erosion(prediction)).any(), "it is cut off"
    found = surface_distances(prediction, reference, VOXEL_MM)
    expected = brute_force(prediction, reference, VOXEL_MM)
    assert [getattr(found, name) for name in NAMES] == pytest.approx(expected, abs=1e-9)


def monai_measures(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, ...]
) -> list[float]:
    from monai.metrics import (
        compute_average_surface_distance,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    pair = [torch.from_numpy(mask[None, None]) for mask in (prediction, reference)]
    known = {"include_background": True, "spacing": spacing_mm}
    return [
        compute_average_surface_distance(*pair, symmetric=True, **known).item(),
        compute_hausdorff_distance(*pair, percentile=95, **known).item(),
        compute_hausdorff_distance(*pair, **known).item(),
        compute_surface_dice(*pair, class_thresholds=[2.0], **known).item(),
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), VOXEL_MM, (0.7, 0.7, 5.0), (2.0, 0.4, 0.557)])
def test_agrees_with_monai(seed: int, spacing_mm: tuple[float, float, float]) -> None:
    prediction, reference = blobs(seed, (26, 30, 22)), blobs(seed + 100, (26, 30, 22))
    found = surface_distances(prediction, reference, spacing_mm)
    expected = monai_measures(prediction, reference, spacing_mm)  # single precision
    assert [getattr(found, name) for name in OF_MONAI] == pytest.approx(expected, rel=1e-6)


def test_differs_from_monai_where_the_scan_cuts_an_organ_off() -> None:
    """MONAI counts the cut as surface; a longer prediction of the same organ is then far from it."""
    shape = (9, 9, 20)
    reference, prediction = box(shape, (2, 7), (2, 7), (5, 20)), box(shape, (2, 7), (2, 7), (10, 20))
    found = surface_distances(prediction, reference, (1, 1, 1))
    assert found.mssd_mm == 5
    assert monai_measures(prediction, reference, (1, 1, 1))[0] < found.assd_mm  # the cuts agree, and count
    beyond = [np.pad(mask, ((0, 0), (0, 0), (0, 6)), mode="edge") for mask in (prediction, reference)]
    assert surface_distances(*beyond, (1, 1, 1)).mssd_mm == found.mssd_mm


def test_one_voxel_each() -> None:
    one, other = box((9, 9, 9), (1, 2), (1, 2), (1, 2)), box((9, 9, 9), (5, 6), (4, 5), (3, 4))
    expected = math.sqrt((4 * 0.5) ** 2 + (3 * 0.8) ** 2 + (2 * 2.5) ** 2)
    found = surface_distances(one, other, VOXEL_MM)
    assert (found.assd_mm, found.hd95_mm, found.mssd_mm) == pytest.approx((expected,) * 3)
    assert found.surface_dice_2mm == 0
    assert surface_distances(one, one, VOXEL_MM) == SurfaceDistances(0, 0, 0, 0, 1)


def test_values_derived_by_hand() -> None:
    """Two bars of one voxel's width, one of them two voxels longer: 1 and 2 steps of 2.5 mm at its end."""
    short, long = box((5, 5, 12), (2, 3), (2, 3), (1, 5)), box((5, 5, 12), (2, 3), (2, 3), (1, 7))
    found = surface_distances(short, long, VOXEL_MM)
    assert found.assd_mm == pytest.approx((2.5 + 5) / (4 + 6))
    assert found.mssd_mm == pytest.approx(5)
    assert found.hd95_mm == pytest.approx(np.percentile([0, 0, 0, 0, 2.5, 5], 95))
    assert found.surface_dice_2mm == pytest.approx(8 / 10)


EMPTY, FULL = np.zeros((4, 5, 6), np.bool_), np.ones((4, 5, 6), np.bool_)


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        pytest.param(EMPTY, EMPTY, id="empty, empty"),
        pytest.param(EMPTY, FULL, id="empty, full"),
        pytest.param(FULL, EMPTY, id="full, empty"),
        pytest.param(FULL, FULL, id="full, full: nothing ends inside the volume"),
        pytest.param(EMPTY, box((4, 5, 6), (1, 2), (1, 2), (1, 2)), id="empty, one voxel"),
        pytest.param(EMPTY[:0], EMPTY[:0], id="no voxel at all"),
    ],
)
def test_without_a_surface_nothing_is_defined(prediction: np.ndarray, reference: np.ndarray) -> None:
    assert surface_distances(prediction, reference, VOXEL_MM) == SurfaceDistances()


@pytest.mark.parametrize("spacing_mm", [0.4, 0.1, 0.2, 2 / 3])
def test_two_millimetres_are_within_two_millimetres(spacing_mm: float) -> None:
    """For every start, also where the product is a little more than 2 in binary."""
    for start in range(1, 30):
        stop = start + round(2 / spacing_mm)
        one, other = (box((60, 3, 3), (at, at + 1), (1, 2), (1, 2)) for at in (start, stop))
        assert surface_distances(one, other, (spacing_mm, 1.0, 1.0)).surface_dice_2mm == 1


@settings(max_examples=20)
@given(MASKS, MASKS, st.permutations(range(3)))
def test_neither_axes_nor_memory_nor_roles_matter(
    prediction: np.ndarray, reference: np.ndarray, axes: list[int]
) -> None:
    expected = surface_distances(prediction, reference, VOXEL_MM)
    turn: Callable[[np.ndarray], np.ndarray] = lambda mask: np.asfortranarray(mask.transpose(axes)[::-1])  # noqa: E731
    x, y, z = (VOXEL_MM[axis] for axis in axes)
    found = surface_distances(turn(reference), turn(prediction), (x, y, z))
    for name in NAMES:
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-9)
