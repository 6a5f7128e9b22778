"""MONAI: Orientationd, Spacingd, bilinear and nearest, saved as plain .npy, int16 and uint8."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from meter import meter
from monai.transforms import LoadImaged, Orientationd, Spacingd

DTYPES = {"image": np.int16, "label": np.uint8}
MODES = {"image": "bilinear", "label": "nearest"}


def work(files: list[Path], folder: Path) -> Iterator[str]:
    """Read, resample and write a case."""
    data = dict(zip(DTYPES, map(str, files), strict=False))
    keys = list(data)
    data = LoadImaged(keys, ensure_channel_first=True)(data)
    yield "read"
    data = Orientationd(keys, axcodes="RAS", labels=None)(data)
    data = Spacingd(keys, pixdim=(1.0, 1.0, 1.0), mode=[MODES[key] for key in keys])(data)
    yield "resample"
    for key in keys:
        np.save(folder / f"{key}.npy", data[key][0].round().numpy().astype(DTYPES[key]))
    yield "write"


if __name__ == "__main__":
    torch.set_num_threads(1)
    meter(work)
