"""A picture of a case that nobody stored: streamed to a coarse grid, drawn in three planes."""

import contextlib
import io
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from liverseg_core.cases.ingest import case_slabs
from liverseg_core.cases.scans import open_scans
from liverseg_core.cases.target import plan_target
from liverseg_core.config import IngestConfig
from liverseg_core.drawing import BACKGROUND
from liverseg_core.errors import LiversegError
from liverseg_core.pictures import overlay_png
from liverseg_core.sources.source import CaseSource

LONGEST = 320
"""Voxels along a picture's longest axis: no volume takes more than 100 MB, and no picture shows more."""


def draw_case(case: CaseSource) -> bytes:
    """A PNG of a case's scan, with its label outlined where it has one.

    Where its header is corrected, what it would be by its header stands on the left.

    Raises:
        LiversegError: As `liverseg_core.cases.ingest.survey_case`.
    """
    if not (case.spacing_mm or case.axes):
        return _drawn(case, case.case)
    pictures = [_drawn(case, f"{case.case} as corrected")]
    with contextlib.suppress(LiversegError):  # without its correction the label may lie elsewhere
        by_header = replace(case, spacing_mm=None, axes=None)
        pictures.insert(0, _drawn(by_header, f"{case.case} as its header says"))
    return _side_by_side(pictures)


def _drawn(case: CaseSource, title: str) -> bytes:
    image, label = open_scans(case)
    grid = image.header.grid
    longest = max(size * mm for size, mm in zip(grid.shape, grid.spacing_mm, strict=True))
    coarse = max(longest / LONGEST, min(grid.spacing_mm))
    config = IngestConfig(spacing_mm=(coarse, coarse, coarse))
    target = plan_target(image.header, config)
    hu = np.empty(target.grid.shape, np.int16, order="F")
    classes = None if label is None else np.empty(target.grid.shape, np.uint8, order="F")
    for start, image_slab, label_slab in case_slabs(image, label, target, config):
        hu[:, :, start : start + len(image_slab)] = image_slab.T
        if classes is not None:
            classes[:, :, start : start + len(image_slab)] = label_slab.T
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.png"
        overlay_png(path, hu, classes, None, target.grid.spacing_mm, f"{title}, drawn at {coarse:.2g} mm")
        return path.read_bytes()


def _side_by_side(pictures: Sequence[bytes]) -> bytes:
    from PIL import Image

    opened = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
    size = sum(one.width for one in opened), max(one.height for one in opened)
    whole, at = Image.new("RGB", size, BACKGROUND), 0
    for one in opened:
        whole.paste(one, (at, 0))
        at += one.width
    packed = io.BytesIO()
    whole.save(packed, "PNG")
    return packed.getvalue()
