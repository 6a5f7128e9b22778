"""What a histogram of HU says: how much of a scan is body, and how bright that is."""

from typing import Any

import numpy as np
from jaxtyping import Int16, Int64

BODY_HU = -500
PERCENTILES = (0.5, 1, 5, 50, 95, 99, 99.5)
LOWEST = int(np.iinfo(np.int16).min)
PIECE = 1 << 22
"""Voxels counted at a time: bincount widens to 64 bits."""

Histogram = Int64[np.ndarray, " 65536"]
"""Voxels of each HU, from the lowest that int16 holds."""


def histogram_of(image: Int16[np.ndarray, "..."]) -> Histogram:
    """Count a volume that is held whole."""
    flat = image.reshape(-1, order="A")
    found = np.zeros(65536, np.int64)
    for start in range(0, flat.size, PIECE):
        found += np.bincount(flat[start : start + PIECE].view(np.uint16), minlength=65536)
    return np.roll(found, -LOWEST)


def body_facts(histogram: Histogram) -> dict[str, Any]:
    """`body_voxels`, of what is brighter than `BODY_HU`, and `body_hu`, its `intensity`."""
    body = np.where(np.arange(LOWEST, -LOWEST) > BODY_HU, histogram, 0)
    return {"body_voxels": int(body.sum()), "body_hu": intensity(body)}


def intensity(histogram: Histogram) -> dict[str, Any] | None:
    """Mean, standard deviation and `PERCENTILES`; None of nothing."""
    count = int(histogram.sum())
    if count == 0:
        return None
    values = np.arange(LOWEST, -LOWEST)
    mean = float((values * histogram).sum() / count)
    std = float(np.sqrt((histogram * (values - mean) ** 2).sum() / count))
    below = np.cumsum(histogram)
    at = np.searchsorted(below, np.array(PERCENTILES) / 100 * count)
    percentiles = {
        f"p{p:g}": int(values[min(i, len(values) - 1)]) for p, i in zip(PERCENTILES, at, strict=True)
    }
    return {"mean": round(mean, 3), "std": round(std, 3), **percentiles}
