"""What a film shows of a case, and how large: the body, and the slices that hold the liver."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from liverseg_core.evaluation.case_view import CaseView
from liverseg_core.pictures import BODY_HU, BODY_MARGIN_MM

Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""

GREYS = 128
"""That a frame has."""
GAP, HEADER, FOOTER = 8, 46, 46
FRAME_HEIGHT, PANEL_WIDTH, NARROWEST = 480, 440, 176
Z_MARGIN_MM = 12.0
BODY_SHARE = 0.02
"""A row or column with less than this of it above `BODY_HU` shows the table, a cable or noise."""


@dataclass(frozen=True)
class Scene:
    """Which part of a case is shown, and how large."""

    x: slice
    y: slice
    size: tuple[int, int]
    """Width and height of a panel in pixels."""
    slices: tuple[int, ...]
    """Slices to show, from below."""
    greys: int
    """How many are told apart: few make a smaller file."""

    @property
    def column(self) -> int:
        """Width that a panel stands in the middle of: words need some, however narrow the body."""
        return max(self.size[0], NARROWEST)

    @property
    def frame(self) -> tuple[int, int]:
        """Width and height of a frame, both even, as video wants them."""
        return 2 * self.column + 3 * GAP + GAP % 2, self.size[1] + HEADER + FOOTER


def plan(view: CaseView, *, frames: int, panel_width: int = PANEL_WIDTH, greys: int = GREYS) -> Scene:
    """Choose what to show of a case: the body, and the livers' height where there is one.

    Args:
        view: The case.
        frames: At most so many slices, evenly spread.
        panel_width: At most so many pixels; a frame is at most `FRAME_HEIGHT` high, too.
        greys: How many to tell apart.
    """
    dx, dy, dz = view.spacing_mm
    margin = round(Z_MARGIN_MM / dz)
    held: list[int] = np.flatnonzero(presence(view).any(0)).tolist()
    depth = view.image.shape[2]
    low, high = (max(0, held[0] - margin), min(depth, held[-1] + 1 + margin)) if held else (0, depth)
    slices = np.unique(np.linspace(low, high - 1, min(frames, high - low)).round().astype(int))
    x, y = _body(view, slices)
    wide, high_mm = (x.stop - x.start) * dx, (y.stop - y.start) * dy
    scale = min(panel_width / wide, (FRAME_HEIGHT - HEADER - FOOTER) / high_mm)
    size = max(2, round(wide * scale / 2) * 2), max(2, round(high_mm * scale / 2) * 2)
    return Scene(x, y, size, tuple(slices.tolist()), greys)


def fullest(view: CaseView) -> int:
    """The slice with the most tumour in either label, else with the most liver, else the middle one."""
    labels = [label for label in (view.reference, view.prediction) if label is not None]
    for lowest in (2, 1):
        for label in labels:
            counts = [np.count_nonzero(label[:, :, z] >= lowest) for z in range(label.shape[2])]
            if any(counts):
                return int(np.argmax(counts))
    depth: int = view.image.shape[2]
    return depth // 2


def panel_boxes(scene: Scene) -> tuple[Box, Box]:
    """Where in a frame the scan with the reference is, and the one with the prediction."""
    (wide, high), inset = scene.size, (scene.column - scene.size[0]) // 2
    lefts = GAP + inset, 2 * GAP + scene.column + inset
    first, second = ((left, HEADER, left + wide, HEADER + high) for left in lefts)
    return first, second


def presence(view: CaseView) -> UInt8[np.ndarray, "labels z"]:
    """The highest class in every slice of the reference, where there is one, and of the prediction."""
    labels = [label for label in (view.reference, view.prediction) if label is not None]
    return np.stack([label.max((0, 1)) for label in labels])


def _body(view: CaseView, slices: Any) -> tuple[slice, slice]:
    """The body's width and depth in some of the slices, with a margin; all where there is none."""
    some = slices[:: max(1, len(slices) // 12)]
    body = np.logical_or.reduce([view.image[:, :, z] > BODY_HU for z in some.tolist()])
    parts = []
    for axis, spacing in enumerate(view.spacing_mm[:2]):
        held = np.flatnonzero(body.mean(1 - axis) > BODY_SHARE)
        margin = round(BODY_MARGIN_MM / spacing)
        whole = body.shape[axis]
        low, high = (held[0] - margin, held[-1] + 1 + margin) if held.size else (0, whole)
        parts.append(slice(max(0, int(low)), min(whole, int(high))))
    return parts[0], parts[1]
