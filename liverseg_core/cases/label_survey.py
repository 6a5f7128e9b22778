"""What a label holds, gathered plane by plane: voxels of each class, and the tumours as they lie.

A tumour is a 6-connected component of class 2. Only the plane before is kept, never the volume, so that a
scan can stream past; the order of the planes and their directions do not matter.
"""

from typing import Any

import numba
import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt8

from liverseg_core.arrays import Spacing
from liverseg_core.cases.data_report import edge_cm2

Plane = UInt8[np.ndarray, "y x"]


class LabelSurvey:
    """Accumulates over the planes of one label, all of one shape."""

    def __init__(self) -> None:
        self.counts: Int64[np.ndarray, " 4"] = np.zeros(4, np.int64)
        """Voxels of each class, then how many provisional components there are."""
        self.before: Plane | None = None
        self.components: Int32[np.ndarray, "y x"] | None = None  # of that plane's tumour voxels only
        self.edges: Int64[np.ndarray, " 6"] = np.zeros(6, np.int64)
        """Liver and tumour voxels on the first and the last plane, row and column."""
        self.parent: Int32[np.ndarray, " n"] = np.zeros(1, np.int32)  # a forest: roots are components
        self.touches: Bool[np.ndarray, " n"] = np.zeros(1, np.bool_)

    def add(self, plane: Plane) -> None:
        """Take in the next plane, which must stay as it is until the one behind it is taken in."""
        if self.before is None or self.components is None:
            self.before, self.components = np.zeros_like(plane), np.empty(plane.shape, np.int32)
            self.edges[0] = np.count_nonzero(plane)
        room = int(self.counts[3]) + plane.size // 2 + 2  # as many as a chessboard of tumours would add
        if len(self.parent) < room:
            more = max(room, 2 * len(self.parent)) - len(self.parent)
            self.parent = np.concatenate([self.parent, np.zeros(more, np.int32)])
            self.touches = np.concatenate([self.touches, np.zeros(more, np.bool_)])
        components = np.empty_like(self.components)
        ids = (self.components, components)
        _take_in((self.before, plane), ids, self.parent, self.touches, self.counts)
        self.before, self.components = plane, components
        sides = plane[0], plane[-1], plane[:, 0], plane[:, -1]
        self.edges[2:] += [np.count_nonzero(side) for side in sides]

    def facts(self, spacing_mm: Spacing) -> dict[str, Any]:
        """Plain JSON values: `voxels` by class, `tumours`, how many of these touch no liver voxel, and
        `edge_cm2`, how much liver with tumours lies on one face of the scan.

        Args:
            spacing_mm: Between columns, rows and planes.
        """
        tumours, touching = _count(self.parent, self.touches, self.counts[3])
        self.edges[1] = 0 if self.before is None else np.count_nonzero(self.before)
        return {
            "voxels": self.counts[:3].tolist(),
            "tumours": tumours,
            "tumours_outside_liver": tumours - touching,
            "edge_cm2": edge_cm2(self.edges.tolist(), spacing_mm),
        }


@numba.njit(cache=True, nogil=True)
def _root(parent, at):  # type: ignore[no-untyped-def]  # numba infers
    while parent[at] != at:
        parent[at] = parent[parent[at]]
        at = parent[at]
    return at


@numba.njit(cache=True, nogil=True)
def _join(parent, a, b):  # type: ignore[no-untyped-def]
    """The common root of two components; 0 is none."""
    if a == 0 or b == 0:
        return _root(parent, max(a, b)) if a or b else 0
    a, b = _root(parent, a), _root(parent, b)
    parent[max(a, b)] = min(a, b)
    return min(a, b)


@numba.njit(cache=True, nogil=True)
def _take_in(planes, both_ids, parent, touches, counts):  # type: ignore[no-untyped-def]
    (before, plane), (ids_before, ids) = planes, both_ids
    rows, columns = plane.shape
    for j in range(rows):
        seen = np.uint8(0)
        for i in range(columns):
            seen |= plane[j, i] | before[j, i]
        if seen == 0:  # most rows
            counts[0] += columns
            continue
        liver, tumour, tumour_before = 0, 0, 0
        for i in range(columns):
            liver += plane[j, i] == 1
            tumour += plane[j, i] == 2
            tumour_before += before[j, i] == 2
        counts[0] += columns - liver - tumour
        counts[1] += liver
        counts[2] += tumour
        if tumour == 0 and tumour_before == 0:
            continue
        for i in range(columns):
            if plane[j, i] == 1 and before[j, i] == 2:
                touches[ids_before[j, i]] = True
            if plane[j, i] != 2:
                continue
            left = ids[j, i - 1] if i and plane[j, i - 1] == 2 else 0
            front = ids[j - 1, i] if j and plane[j - 1, i] == 2 else 0
            behind = ids_before[j, i] if before[j, i] == 2 else 0
            found = _join(parent, _join(parent, left, front), behind)
            if found == 0:
                counts[3] += 1
                found = counts[3]
                parent[found] = found
            ids[j, i] = found
            if (
                before[j, i] == 1
                or (i and plane[j, i - 1] == 1)
                or (j and plane[j - 1, i] == 1)
                or (i + 1 < columns and plane[j, i + 1] == 1)
                or (j + 1 < rows and plane[j + 1, i] == 1)
            ):
                touches[found] = True


@numba.njit(cache=True, nogil=True)
def _count(parent, touches, used):  # type: ignore[no-untyped-def]
    for at in range(1, used + 1):
        if touches[at]:
            touches[_root(parent, at)] = True
    roots, touching = 0, 0
    for at in range(1, used + 1):
        if parent[at] == at:
            roots += 1
            touching += touches[at]
    return roots, touching
