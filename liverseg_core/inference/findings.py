"""What a segmentation says about a patient: volumes, lesions, tumour burden."""

import math
from typing import Any

import cc3d
import numpy as np
from jaxtyping import Bool, Int64

from liverseg_core.arrays import Label, Spacing
from liverseg_core.inference.postprocess import bounding_box


def findings(label: Label, spacing_mm: Spacing) -> dict[str, Any]:
    """Sum up a canonical label volume, as plain JSON values.

    Args:
        label: 0 background, 1 liver, 2 tumour; z runs along the patient.
        spacing_mm: Of its voxels.

    Returns:
        `liver_ml` (tumours included), `tumour_ml`, `burden` (tumour by liver, null without a liver),
        `lesions` (how many 6-connected tumours) and `largest_diameter_mm`: the longest diameter of any lesion
        in any axial plane, between the middles of its outermost voxels and one voxel more; 0 without lesions.
    """
    voxel_ml = math.prod(spacing_mm) / 1000
    liver, tumour = (int(np.count_nonzero(label >= lowest)) for lowest in (1, 2))
    lesions, largest_mm = _lesions(label, spacing_mm) if tumour else (0, 0.0)
    return {
        "liver_ml": liver * voxel_ml,
        "tumour_ml": tumour * voxel_ml,
        "burden": tumour / liver if liver else None,
        "lesions": lesions,
        "largest_diameter_mm": round(largest_mm, 2),
    }


def _lesions(label: Label, spacing_mm: Spacing) -> tuple[int, float]:
    """How many there are, and the longest axial diameter of any."""
    box = bounding_box(label == 2)
    assert box is not None
    components, count = cc3d.connected_components(label[box] == 2, connectivity=6, return_N=True)
    boxes = cc3d.statistics(components, no_slice_conversion=True)["bounding_boxes"].astype(np.int64)
    x_mm, y_mm, _ = spacing_mm
    lows, highs = boxes[:, ::2], boxes[:, 1::2]
    wide = highs - lows
    reach_mm = np.hypot(wide[:, 0] * x_mm, wide[:, 1] * y_mm) + math.sqrt(x_mm * y_mm)
    reach_mm[0] = 0.0  # what is no lesion
    longest = 0.0
    for lesion in np.argsort(-reach_mm, kind="stable").tolist():
        if reach_mm[lesion] <= longest:  # no diagonal of what follows is longer
            break
        part = tuple(slice(low, high + 1) for low, high in zip(lows[lesion], highs[lesion], strict=True))
        planes = np.moveaxis(components[part] == lesion, 2, 0)
        longest = max(longest, *(_diameter_mm(plane, (x_mm, y_mm)) for plane in planes))
    return int(count), longest


def _diameter_mm(plane: Bool[np.ndarray, "x y"], spacing_mm: tuple[float, float]) -> float:
    """Of a mask: its two farthest voxels, and one voxel more. They are corners of its outline."""
    (rows,) = np.nonzero(plane.any(axis=1))
    if not rows.size:
        return 0.0
    first = plane[rows].argmax(axis=1)
    last = plane.shape[1] - 1 - plane[rows, ::-1].argmax(axis=1)
    corners = [*_corners(rows, first, 1), *_corners(rows, last, -1)]
    ends = np.array(corners) * spacing_mm
    apart = np.linalg.norm(ends[:, None] - ends[None], axis=2)
    return float(apart.max()) + math.sqrt(math.prod(spacing_mm))


def _corners(
    rows: Int64[np.ndarray, " n"], ends: Int64[np.ndarray, " n"], side: int
) -> list[tuple[int, int]]:
    """Those of the rows' ends that a string round them would touch, on one side (Andrew's monotone chain)."""
    corners: list[tuple[int, int]] = []
    for x, y in zip(rows.tolist(), ends.tolist(), strict=True):
        while len(corners) > 1:
            (x0, y0), (x1, y1) = corners[-2:]
            if side * ((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) > 0:
                break
            corners.pop()
        corners.append((x, y))
    return corners
