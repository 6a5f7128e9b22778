"""What nnU-Net's resampling, with the arguments of its plans, makes of a volume: see ingest_error.py.

It stores no affine. The one given here is what `skimage.transform.resize` does: outer edges on outer edges.
"""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import (
    compute_new_shape,
    resample_data_or_seg_to_shape,
)

PLANNED = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}


def main(folder: Path) -> None:
    """Resample both volumes."""
    for kind in ("exact", "int16"):
        image = nib.load(folder / f"{kind}.nii.gz")
        data = image.get_fdata(dtype=np.float32).transpose(2, 1, 0)
        spacing_mm = np.linalg.norm(image.affine[:3, :3], axis=0)[::-1]
        shape = compute_new_shape(data.shape, spacing_mm, (1.0, 1.0, 1.0))
        done = resample_data_or_seg_to_shape(data[None], shape, spacing_mm, (1.0, 1.0, 1.0), **PLANNED)[0]
        ratio = np.divide(data.shape, shape)[::-1]
        step = np.diag([*ratio, 1.0])
        step[:3, 3] = (ratio - 1) / 2
        np.savez(
            folder / f"nnU-Net order 3.{kind}.npz", volume=done.transpose(2, 1, 0), affine=image.affine @ step
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
