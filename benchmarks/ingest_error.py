"""How far resampling is from the truth: a volume whose value is known everywhere, ours beside the peers.

The volume is a sum of cosines below 0.3 cycles a voxel. Each tool's result is compared with the value at the
voxel centres that its own affine claims, away from the edges; once from float voxels, and once from voxels
rounded to int16 as a CT's are.
"""

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from peers_environment import python_of, run_in

from liverseg_core.volumes.geometry import Grid, resampled_grid
from liverseg_core.volumes.resample import resample_image

Row = dict[str, Any]
Points = np.ndarray[Any, np.dtype[np.float64]]
GRIDS = {
    "0.75×0.75×1.5 mm": ((112, 112, 64), (0.75, 0.75, 1.5)),
    "0.8×0.8×5 mm": ((112, 112, 36), (0.8, 0.8, 5.0)),
}
WAVES, HIGHEST, AMPLITUDE_HU = 24, 0.3, 1000.0
MARGIN = 8
"""Voxels: a B-spline feels the edge that far."""
FINER = 16
"""Ours makes int16; this many times larger values show it without that rounding."""
TOLERANCE = 1.001
METHODS: tuple[Literal["linear", "cubic"], ...] = ("linear", "cubic")
ROUNDED = "int16"
OURS, SIMPLEITKS = "ours linear", "SimpleITK linear, our grid"


def error(environments: Path) -> Row:
    """RMSE and largest error of every tool, on a thin and a thick source grid."""
    rows, missing = [], {}
    for name, (shape, spacing_mm) in GRIDS.items():
        affine = np.diag([*spacing_mm, 1.0])
        affine[:3, 3] = (-41.3, -57.9, 103.7)
        source = Grid(shape, affine)
        value = waves(spacing_mm)
        with tempfile.TemporaryDirectory(prefix="liverseg-error-") as scratch:
            folder = Path(scratch)
            _write(folder, value(_centres(source)), source)
            for peer in ("torchio", "monai", "nnunet"):
                try:
                    run_in(python_of(peer, environments), f"resample_{peer}.py", [scratch], folder)
                except subprocess.CalledProcessError as failure:
                    missing[peer] = failure.stderr.strip()[-1000:]
            rows += [{"grid": name, **row} for row in _compare(folder, value, source)]
    return {
        "tolerance": TOLERANCE,
        "linear_at_most_simpleitks": _holds(rows),
        "missing": missing,
        "rows": rows,
    }


def _holds(rows: list[Row]) -> dict[str, bool]:
    """Whether our linear is no further off than SimpleITK's on our grid, for each source grid."""
    rmse = {(row["grid"], row["tool"]): (row["rmse_exact"], row[f"rmse_{ROUNDED}"]) for row in rows}
    pairs = {grid: (rmse[grid, OURS], rmse.get((grid, SIMPLEITKS))) for grid in GRIDS}
    return {
        grid: all(a <= b * TOLERANCE for a, b in zip(ours, theirs, strict=True))
        for grid, (ours, theirs) in pairs.items()
        if theirs
    }


def waves(spacing_mm: tuple[float, float, float]) -> Callable[[Points], Points]:
    """A function of a place in mm, band-limited on voxels of this spacing."""
    rng = np.random.default_rng(7)
    cycles_per_mm = rng.uniform(-HIGHEST, HIGHEST, (WAVES, 3)) / spacing_mm
    phase = rng.uniform(0, 2 * np.pi, WAVES)

    def value(place: Points) -> Points:
        total: Points = np.zeros(place.shape[:-1])
        for wave, start in zip(cycles_per_mm, phase, strict=True):
            total += np.cos(2 * np.pi * (place @ wave) + start)
        return total * AMPLITUDE_HU / WAVES

    return value


def _centres(grid: Grid) -> Points:
    """Where the voxels are, in mm: x, y, z, and the three coordinates."""
    index = np.moveaxis(np.indices(grid.shape), 0, -1)
    centres: Points = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    return centres


def _write(folder: Path, values: Points, source: Grid) -> None:
    """The volume, exact and rounded; what ours makes of both; and our grid, for those that can be told."""
    target = resampled_grid(source, (1.0, 1.0, 1.0))
    np.savez(folder / "grid.npz", shape=target.shape, affine=target.affine)
    rounded = np.rint(values).astype(np.int16)
    for kind, volume, scale in (("exact", values.astype(np.float32), FINER), (ROUNDED, rounded, 1)):
        nib.save(nib.Nifti1Image(volume, source.affine), folder / f"{kind}.nii.gz")
        for method in METHODS:
            planes = (np.ascontiguousarray(plane) * plane.dtype.type(scale) for plane in volume.T)
            made = np.stack(list(resample_image(planes, source, target, method=method))).T / scale
            np.savez(folder / f"ours {method}.{kind}.npz", volume=made, affine=target.affine)


def _compare(folder: Path, value: Callable[[Points], Points], source: Grid) -> list[Row]:
    tools = sorted({path.name.rsplit(".", 2)[0] for path in folder.glob("*.*.npz")})
    rows = []
    for tool in tools:
        row: Row = {"tool": tool}
        for kind in ("exact", ROUNDED):
            with np.load(folder / f"{tool}.{kind}.npz") as found:
                volume, grid = found["volume"], Grid(found["volume"].shape, found["affine"])
            centres = _centres(grid)
            index = (centres - source.affine[:3, 3]) @ np.linalg.inv(source.affine[:3, :3]).T
            inside = np.all((index >= MARGIN) & (index <= np.subtract(source.shape, 1 + MARGIN)), axis=-1)
            wrong = np.abs(volume[inside] - value(centres[inside]))
            row[f"rmse_{kind}"] = round(float(np.sqrt(np.mean(wrong**2))), 4)
            row[f"max_{kind}"] = round(float(wrong.max()), 3)
        rows.append(row)
    return sorted(rows, key=lambda row: row["rmse_exact"])
