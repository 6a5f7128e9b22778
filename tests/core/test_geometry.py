"""Grids: every voxel keeps its place in the patient, whatever the orientation and spacing."""

import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.cases.ingest import ingest_case
from liverseg_core.cases.store import Case, open_case, read_volume
from liverseg_core.config import IngestConfig
from liverseg_core.sources.source import open_source
from liverseg_core.volumes.geometry import (
    MAX_VOXELS,
    Grid,
    axis_maps,
    canonical_orientation,
    corner_distance_mm,
    resampled_grid,
)

CODES = [
    "".join(codes)
    for axes in itertools.permutations(("LR", "PA", "IS"))
    for codes in itertools.product(*axes)
]
spacings = st.tuples(*[st.floats(0.3, 6)] * 3)
shapes = st.tuples(*[st.integers(1, 200)] * 3)
SCANS = st.tuples(
    st.permutations(["LR", "PA", "IS"]).flatmap(lambda axes: st.tuples(*map(st.sampled_from, axes))),
    st.tuples(*[st.integers(1, 24)] * 3),
    spacings,
    st.tuples(*[st.floats(-20, 20)] * 3),
)
"""Axis codes, shape, spacing, obliquity in degrees."""


def place(grid: Grid, index: np.ndarray) -> np.ndarray:
    return grid.affine[:3, :3] @ index + grid.affine[:3, 3]


def outer(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The field of view's outer corners, half a voxel beyond the first and last centres."""
    return place(grid, np.full(3, -0.5)), place(grid, np.array(grid.shape) - 0.5)


@pytest.mark.parametrize("code", CODES)
def test_canonical_is_what_nibabel_says(build: SimpleNamespace, code: str) -> None:
    turn = Rotation.from_euler("xyz", (8, -11, 5), degrees=True).as_matrix()
    stored = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    matrix = build.affine(code, (0.7, 2.5, 1.1), turn)
    orientation = canonical_orientation(matrix)
    canonical, grid = orientation.to_canonical(stored), orientation.canonical_grid(Grid(stored.shape, matrix))
    expected = nib.as_closest_canonical(nib.Nifti1Image(stored, matrix))
    np.testing.assert_array_equal(canonical, expected.dataobj)
    np.testing.assert_allclose(grid.affine, expected.affine, atol=1e-12)
    assert grid.shape == canonical.shape
    assert canonical.base is not None, "a view"
    np.testing.assert_array_equal(orientation.from_canonical(canonical), stored)
    for index in np.ndindex(*stored.shape):  # each value keeps its place
        at = np.argwhere(canonical == stored[index])[0]
        np.testing.assert_allclose(
            place(grid, at), place(Grid(stored.shape, matrix), np.array(index)), atol=1e-9
        )


@given(shapes, spacings, spacings)
@settings(deadline=None)
def test_resampled_grid_keeps_the_field_of_view(shape: tuple, old: tuple, new: tuple) -> None:
    turn = Rotation.from_euler("xyz", (8, -11, 5), degrees=True).as_matrix()
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn * old, (-30, 20, 700)
    source = Grid(shape, matrix)
    assume(np.prod(np.multiply(shape, old) / new + 1) < MAX_VOXELS)
    target = resampled_grid(source, new)
    np.testing.assert_allclose(target.spacing_mm, new, rtol=1e-9)
    np.testing.assert_allclose(target.affine[:3, :3] / new, turn, atol=1e-9)
    for before, after in zip(outer(source), outer(target), strict=True):
        moved = np.abs(turn.T @ (after - before)) / new
        extent = np.array(shape) * old
        one_voxel = (np.array(target.shape) == 1) & (extent < np.array(new) / 2)
        assert np.all((moved <= 0.25 + 1e-5) | one_voxel)
    centres = [place(grid, (np.array(grid.shape) - 1) / 2) for grid in (source, target)]
    np.testing.assert_allclose(*centres, atol=1e-8)


def test_own_spacing_is_the_identity(build: SimpleNamespace) -> None:
    source = Grid((17, 1, 5), build.affine(spacing=(0.7, 2.5, 5)))
    target = resampled_grid(source, source.spacing_mm)
    assert target.shape == source.shape
    for size, axis in zip(source.shape, axis_maps(source, target), strict=True):
        np.testing.assert_array_equal(axis.lower + axis.weight, np.arange(size))


@given(st.integers(1, 50), st.floats(0.2, 5), st.floats(0.2, 5))
@settings(deadline=None)
def test_maps_point_inside_and_at_the_right_place(size: int, old: float, new: float) -> None:
    source = Grid((size, 1, 1), np.diag([old, 1, 1, 1.0]))
    target = resampled_grid(source, (new, 1, 1))
    along, _, _ = axis_maps(source, target)
    assert along.lower.min() >= 0
    assert np.all((along.weight >= 0) & (along.weight <= 1))
    assert np.all(along.lower + (along.weight > 0) <= size - 1)
    at = (along.lower + along.weight) * old
    expected = np.clip(target.affine[0, 3] + np.arange(target.shape[0]) * new, 0, (size - 1) * old)
    np.testing.assert_allclose(at, expected, atol=2e-5 * size)


def test_corner_distance(build: SimpleNamespace) -> None:
    one = Grid((11, 5, 5), np.eye(4))
    wider = Grid((11, 5, 5), np.diag([1.1, 1, 1, 1.0]))
    assert corner_distance_mm(one, one) == 0
    assert corner_distance_mm(one, wider) == pytest.approx(1), "ten voxels of a tenth"
    assert corner_distance_mm(one, Grid((11, 5, 6), np.eye(4))) == math.inf


def test_a_resampling_bomb_is_refused(build: SimpleNamespace) -> None:
    source = Grid((512, 512, 300), np.diag([100.0, 100, 100, 1]))
    assert build.refusal(resampled_grid, source, (1, 1, 1)) == "LS319"
    assert build.refusal(resampled_grid, source, (1e-300, 1, 1)) == "LS319"
    side = round(MAX_VOXELS ** (1 / 3)) // 2
    assert build.refusal(resampled_grid, Grid((side,) * 3, np.eye(4)), (0.5, 0.5, 0.5)) == ""


def world(grid: Grid) -> np.ndarray:
    """Every voxel's x, y and z in mm."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"))
    return np.tensordot(grid.affine[:3, :3], index, 1) + grid.affine[:3, 3].reshape(3, 1, 1, 1)


def assert_is_ramp(case: Case, stored: Grid, axis: int) -> None:
    """Within the source's voxel centres, where nothing is held, the values are the places."""
    index = np.linalg.solve(
        stored.affine, np.concatenate([world(case.grid), np.ones((1, *case.grid.shape))]).reshape(4, -1)
    )
    limits = np.array(stored.shape).reshape(3, 1) - 1
    inside = np.all((index[:3] > -1e-4) & (index[:3] < limits + 1e-4), axis=0).reshape(case.grid.shape)
    off = np.abs(read_volume(case.image) - world(case.grid)[axis])[inside]
    assert off.size == 0 or off.max() <= 0.5 + 1e-3


def ramp(build: SimpleNamespace, grid: Grid, axis: int) -> bytes:
    return build.zipped(build.nifti(world(grid)[axis].astype(np.float32), grid.affine))


@given(SCANS, spacings, st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_world_ramp(
    build: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory, scan: tuple, new: tuple, axis: int
) -> None:
    codes, shape, old, angles = scan
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    grid = Grid(shape, build.affine("".join(codes), old, turn).astype(np.float32).astype(float))
    folder = tmp_path_factory.mktemp("ramp")
    stored = ingest_case(
        build.case(folder, ramp(build, grid, axis)), IngestConfig(spacing_mm=new), LocalStore(folder / "s")
    )
    assert_is_ramp(open_case(stored.path), grid, axis)


def test_world_ramp_through_a_tar(build: SimpleNamespace, tmp_path: Path) -> None:
    turn = Rotation.from_euler("xyz", (4, -7, 9), degrees=True).as_matrix()
    grids = [
        Grid((30, 20, 40), build.affine(code, (0.7, 2.5, 1.1), turn).astype(np.float32).astype(float))
        for code in ("LPI", "SAR", "PIL")
    ]
    cases = {f"liver_{i}": (ramp(build, grid, i), None) for i, grid in enumerate(grids)}
    source = open_source(str(build.tar(tmp_path / "t.tar", build.members(cases))))
    for i, (case, grid) in enumerate(zip(source.cases, grids, strict=True)):
        opened = open_case(ingest_case(case, IngestConfig(), LocalStore(tmp_path / "store")).path)
        assert opened.grid.spacing_mm == pytest.approx((1, 1, 1))
        assert_is_ramp(opened, grid, i)
        shrunk = IngestConfig(spacing_mm=None, shrink=2)
        halved = open_case(ingest_case(case, shrunk, LocalStore(tmp_path / "store")).path)
        assert_is_ramp(halved, grid, i)


@pytest.mark.parametrize("spacing", [None, (4.0, 3.5, 5.0)])
def test_orientation_files_give_one_volume(
    build: SimpleNamespace, real_data: Path, tmp_path: Path, spacing: tuple | None
) -> None:
    """One image stored in 24 axis orders: afterwards the same voxels at the same places."""
    paths = sorted((real_data / "nasty/niivue/nifti_space").glob("*.nii.gz"))
    assert len(paths) == 24
    config = IngestConfig(spacing_mm=spacing)
    found = []
    for path in paths:
        case = build.case(tmp_path, path.read_bytes(), name=path.name[:3])
        found.append(open_case(ingest_case(case, config, LocalStore(tmp_path / "store")).path))
    first = read_volume(found[0].image)
    assert first.std() > 10
    for case in found[1:]:
        np.testing.assert_allclose(case.grid.affine, found[0].grid.affine, atol=1e-4)
        np.testing.assert_array_equal(read_volume(case.image), first)
