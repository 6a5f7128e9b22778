"""What torchio, and SimpleITK on a given grid, make of a volume: see ingest_error.py for the files."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813  # as everyone does
import torchio as tio

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
METHODS = {"linear": sitk.sitkLinear, "B-spline": sitk.sitkBSpline}


def main(folder: Path) -> None:
    """Resample both volumes with each tool."""
    grid = np.load(folder / "grid.npz")
    for kind in ("exact", "int16"):
        file = folder / f"{kind}.nii.gz"
        image = sitk.ReadImage(file)
        for name, method in METHODS.items():
            volume = sitk.GetArrayFromImage(_resampled(image, grid["shape"], grid["affine"], method)).T
            np.savez(folder / f"SimpleITK {name}, our grid.{kind}.npz", volume=volume, affine=grid["affine"])
        done = tio.Compose([tio.ToCanonical(), tio.Resample(1)])(tio.ScalarImage(file))
        np.savez(folder / f"torchio linear.{kind}.npz", volume=done.numpy()[0], affine=done.affine)


def _resampled(image: sitk.Image, shape: np.ndarray, affine: np.ndarray, method: int) -> sitk.Image:
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    resample: Any = sitk.ResampleImageFilter()  # type: ignore[no-untyped-call]
    resample.SetSize([int(size) for size in shape])
    resample.SetOutputSpacing(spacing_mm.tolist())
    resample.SetOutputOrigin((RAS_TO_LPS @ affine[:3, 3]).tolist())
    resample.SetOutputDirection((RAS_TO_LPS @ (affine[:3, :3] / spacing_mm)).ravel().tolist())
    resample.SetInterpolator(method)
    done: sitk.Image = resample.Execute(image)
    return done


if __name__ == "__main__":
    main(Path(sys.argv[1]))
