"""What MONAI makes of a volume: see ingest_error.py for the files."""

import sys
from pathlib import Path

import numpy as np
from monai.transforms import LoadImaged, Orientationd, Spacingd


def main(folder: Path) -> None:
    """Resample both volumes."""
    for kind in ("exact", "int16"):
        data = LoadImaged("image", ensure_channel_first=True)({"image": str(folder / f"{kind}.nii.gz")})
        data = Orientationd("image", axcodes="RAS", labels=None)(data)
        done = Spacingd("image", pixdim=(1.0, 1.0, 1.0), mode="bilinear")(data)["image"]
        np.savez(folder / f"MONAI bilinear.{kind}.npz", volume=done[0].numpy(), affine=done.affine.numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
