"""HU of a volume in a few numbers, from its histogram."""

from typing import Any

import numpy as np
from jaxtyping import Int64

BODY_HU = -500
PERCENTILES = (0.5, 1, 5, 50, 95, 99, 99.5)
LOWEST = np.iinfo(np.int16).min

Histogram = Int64[np.ndarray, " 65536"]
"""How many voxels have each HU, from `LOWEST` on."""


def body_facts(histogram: Histogram) -> dict[str, Any]:
    """How many voxels are brighter than `BODY_HU`, and their HU; plain JSON values."""
    body = np.where(np.arange(LOWEST, -LOWEST) > BODY_HU, histogram, 0)
    return {"body_voxels": int(body.sum()), "body_hu": intensity(body)}


def intensity(histogram: Histogram) -> dict[str, Any] | None:
    """Mean, standard deviation and percentiles in HU; None for no voxels."""
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
