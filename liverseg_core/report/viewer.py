"""Cases to scroll through inside a page: cropped, coarse enough to fit, packed as text.

A packed case is one deflated stream: grey values in steps of `STEP_HU` as differences along x, then one byte
a voxel with the predicted class and, two bits higher, the reference's. `viewer.js` unpacks and draws it.
"""

import base64
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped, UInt8

from liverseg_core.arrays import Spacing
from liverseg_core.drawing import LIVER, TUMOUR
from liverseg_core.evaluation.case_view import CaseView
from liverseg_core.pictures import BODY_HU, focus
from liverseg_core.report import svg
from liverseg_core.report.scene import BODY_SHARE

ASSETS = tuple(Path(__file__).with_suffix(suffix) for suffix in (".css", ".js"))
LOWEST_HU, STEP_HU, TOP = -300, 4, 255
"""What grey 0 stands for, with all below it; a step, finer than any noise; the last grey that a byte has."""
HIGHEST_HU = LOWEST_HU + TOP * STEP_HU
"""What the last grey stands for, with all above it."""
NEARLY = 1e-3
"""Steps by which a mean may miss that of equal values."""
FINEST_MM, COARSEST_MM, COARSER = 1.5, 8.0, 1.15
MARGIN_MM = 25.0
"""Shown above and below the labels."""
MISSED, INVENTED = "#56b4e9", "#ff6a13"
"""Sky blue and vermilion: apart for every kind of colour vision."""

Box = tuple[slice, slice, slice]
Volume = Shaped[np.ndarray, "x y z"]
Mask = Bool[np.ndarray, "x y z"]


@dataclass(frozen=True)
class Stack:
    """A case as it is shown, in canonical RAS+ order."""

    case: str
    grey: UInt8[np.ndarray, "x y z"]
    labels: UInt8[np.ndarray, "x y z"]
    """Predicted class + 4 × the reference's."""
    spacing_mm: Spacing
    point: tuple[int, int, int]
    """The voxel it opens at."""
    facts: dict[str, Any]


@dataclass(frozen=True)
class Packed:
    """A case as text: facts for the script, and its voxels."""

    case: str
    facts: str
    voxels: str
    spacing_mm: Spacing

    @property
    def size(self) -> int:
        """Bytes in the page."""
        return len(escape(self.facts)) + len(self.voxels) + 400


def stack_of(view: CaseView) -> Stack:
    """The part of a case worth showing, at its own spacing."""
    masks = [mask for mask in (view.reference, view.prediction) if mask is not None]
    box = _box(view, masks)
    image, prediction = view.image[box], view.prediction[box]
    reference = np.zeros_like(prediction) if view.reference is None else view.reference[box]
    point = focus(None if view.reference is None else reference, prediction, image.shape)
    facts = {"case": view.case, "referenced": view.reference is not None}
    steps = (np.clip(image, LOWEST_HU, HIGHEST_HU) - LOWEST_HU + STEP_HU // 2) // STEP_HU
    grey = _grey(steps, image <= LOWEST_HU, image >= HIGHEST_HU)
    return Stack(view.case, grey, prediction + 4 * reference, view.spacing_mm, point, facts)


def _grey(steps: Volume, lowest: Mask, highest: Mask) -> UInt8[np.ndarray, "x y z"]:
    """Steps as they are packed: the first and the last only where they are meant."""
    grey: UInt8[np.ndarray, "x y z"] = np.clip(steps, 1, TOP - 1).astype(np.uint8)
    grey[lowest], grey[highest] = 0, TOP
    return grey


def coarser(stack: Stack, finest_mm: float) -> Stack:
    """The same part with no spacing below `finest_mm`: greys averaged, labels those at a voxel's middle."""
    from scipy.ndimage import uniform_filter

    shape = stack.grey.shape
    counts = [
        max(1, min(n, round(n * mm / finest_mm))) for n, mm in zip(shape, stack.spacing_mm, strict=True)
    ]
    if counts == [*shape]:
        return stack
    places = np.ix_(*(((np.arange(k) + 0.5) * n / k).astype(int) for n, k in zip(shape, counts, strict=True)))
    sizes = [max(1, round(n / k)) for n, k in zip(shape, counts, strict=True)]
    smooth = uniform_filter(stack.grey.astype(np.float32), sizes)[places]
    x, y, z = (mm * n / k for mm, n, k in zip(stack.spacing_mm, shape, counts, strict=True))
    i, j, k = (int(at * count / n) for at, count, n in zip(stack.point, counts, shape, strict=True))
    grey = _grey(np.rint(smooth), smooth < NEARLY, smooth > TOP - NEARLY)
    return replace(stack, grey=grey, labels=stack.labels[places], spacing_mm=(x, y, z), point=(i, j, k))


def pack(stack: Stack) -> Packed:
    """A case as text for the page."""
    facts = {
        **stack.facts,
        "shape": stack.grey.shape,
        "spacing": [round(mm, 4) for mm in stack.spacing_mm],
        "point": stack.point,
        "lowest": LOWEST_HU,
        "step": STEP_HU,
        "top": TOP,
    }
    steps = np.diff(stack.grey.ravel("F"), prepend=np.uint8(0))  # modulo 256, as the script adds them up
    data = zlib.compress(steps.tobytes() + stack.labels.ravel("F").tobytes(), 9)
    return Packed(stack.case, json.dumps(facts), base64.b64encode(data).decode(), stack.spacing_mm)


def fit(stacks: Sequence[Stack], room: int) -> list[Packed]:
    """Pack cases into so many bytes, all as coarse as it takes; where nothing is enough, the first ones.

    Args:
        stacks: In the order of what they are worth.
        room: Bytes at most, those of the viewer itself among them.
    """
    room -= len(viewer_html(())) + sum(asset.stat().st_size for asset in ASSETS)
    for count in range(len(stacks), 0, -1):
        finest_mm = max(FINEST_MM, min(mm for stack in stacks for mm in stack.spacing_mm))
        coarsest_mm = max(COARSEST_MM, finest_mm)  # as it is, a case is never too coarse
        while finest_mm <= coarsest_mm:
            packed = [pack(coarser(stack, finest_mm)) for stack in stacks[:count]]
            size = sum(one.size for one in packed)
            if size <= room:
                return packed
            # Bytes go by voxels, whose number goes by the third power of their size.
            finest_mm *= max(COARSER, math.cbrt(size / max(room, 1)))
    return []


def _box(view: CaseView, masks: Sequence[Volume]) -> Box:
    """The labels' height with a margin, and there the body's width and depth."""
    margin = round(MARGIN_MM / view.spacing_mm[2])
    low, high = _range(np.logical_or.reduce([mask.any((0, 1)) for mask in masks]))
    z = slice(max(0, low - margin), high + margin)
    body, labels = view.image[:, :, z] > BODY_HU, np.logical_or.reduce([mask[:, :, z] > 0 for mask in masks])
    sides = [_range((body.mean(others) > BODY_SHARE) | labels.any(others)) for others in ((1, 2), (0, 2))]
    x, y = (slice(*side) for side in sides)
    return x, y, z


def _range(held: Shaped[np.ndarray, " n"]) -> tuple[int, int]:
    """First and one past the last index that holds anything; all where none does."""
    places = np.flatnonzero(held)
    return (int(places[0]), int(places[-1]) + 1) if places.size else (0, held.size)


def viewer_html(cases: Sequence[Packed]) -> str:
    """The viewer with its cases, the first of which it opens."""
    options = "".join(f"<option value={at}>{escape(one.case)}</option>" for at, one in enumerate(cases))
    blocks = "".join(
        f'<script type="text/plain" class="voxels" data-facts="{escape(one.facts)}">{one.voxels}</script>'
        for one in cases
    )
    colours = f"--liver:{LIVER};--tumour:{TUMOUR};--missed:{MISSED};--invented:{INVENTED}"
    planes = "".join(
        f'<label><input type="radio" name="plane" value="{name}"{" checked" if name == "axial" else ""}>'
        f"<span>{name}</span></label>"
        for name in ("axial", "coronal", "sagittal")
    )
    windows = "".join(
        f'<option value="{low},{high}">{name}, {svg.number(low, 0)} to {high} HU</option>'
        for name, low, high in (("liver", -160, 240), ("narrow", 0, 180), ("wide", -300, 700))
    )
    toggles = "".join(
        f'<label><input type="checkbox" name="{name}"{" checked" if on else ""}><span>{text}</span></label>'
        for name, text, on in (
            ("prediction", "prediction, filled", True),
            ("reference", "reference, outlined", True),
            ("errors", "errors", False),
        )
    )
    return f"""<section id="viewer" style="{colours}" aria-label="Viewer of cases">
<div class="controls">
<label>Case <select name="case">{options}</select></label>
<fieldset class="segments"><legend>Plane</legend>{planes}</fieldset>
<label>Window <select name="window">{windows}</select></label>
<fieldset class="toggles"><legend>Show</legend>{toggles}</fieldset>
<label class="opacity">Opacity <input type="range" name="opacity" min="0" max="100" value="45"></label>
</div>
<div class="stage"><canvas tabindex="0" role="img" aria-describedby="viewer-help"></canvas></div>
<label class="slice">Slice <input type="range" name="slice" min="0" value="0"></label>
<output></output>
<ul class="legend"><li class="liver">liver</li><li class="tumour">tumour</li>
<li class="missed">missed: the reference has more</li>
<li class="invented">invented: the prediction has more</li></ul>
<p class="faint help" id="viewer-help">Wheel, drag sideways, slider or arrow keys: slices;
page keys: ten; click or tap: the place that all planes go through; keys 1 2 3: planes, p r e: prediction,
reference, errors. HU are rough: greys are kept from {svg.number(LOWEST_HU, 0)} to {HIGHEST_HU} HU in steps of
{STEP_HU}, and averaged where voxels are larger than the scan's.</p>
<noscript><p class="problem">The viewer needs JavaScript.</p></noscript>
</section>{blocks}"""
