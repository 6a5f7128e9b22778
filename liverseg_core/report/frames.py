"""Frames of a film through a case: the scan with the reference outlined, beside it the prediction filled.

A frame is drawn in one palette from the start: greys, the same greys seen through purple and through yellow,
and the two pure colours. So no file format has to choose colours, and the same case gives the same bytes.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image as Pictures
from PIL import ImageDraw, ImageFont

from liverseg_core.arrays import Label
from liverseg_core.drawing import LIVER, TUMOUR
from liverseg_core.evaluation.case_view import CaseView
from liverseg_core.pictures import WINDOW_HU
from liverseg_core.report.scene import GAP, GREYS, Scene, panel_boxes, presence

Frame = UInt8[np.ndarray, "h w"]
"""Indices into `PALETTE`, from the top."""
Mask = Bool[np.ndarray, "h w"]
TINTS = 60
LIVER_TINT, TUMOUR_TINT = GREYS, GREYS + TINTS
PURE_LIVER, PURE_TUMOUR = GREYS + 2 * TINTS, GREYS + 2 * TINTS + 1
LIVER_COVER, TUMOUR_COVER = 0.6, 0.9
"""How much of a grey a fill replaces, by the pure colour darkened as the grey is, so that tissue shows."""
TINT_OF_GREY = (np.arange(GREYS) * (TINTS - 1) // (GREYS - 1)).astype(np.uint8)
INK, FAINT, GROUND, TRACK = 117, 80, 8, 28
"""Greys for words, lesser words, what surrounds the panels, and the empty part of the bar."""


def frames(view: CaseView, scene: Scene) -> Iterator[Frame]:
    """Draw a scene, one slice at a time."""
    empty, bar = _empty(view, scene), _bar(view, scene)
    for z in scene.slices:
        yield _frame(view, scene, z, (empty, bar))


@cache
def palette() -> UInt8[np.ndarray, "256 3"]:
    """What the indices of a frame mean."""
    colours = np.zeros((256, 3))
    colours[:GREYS] = np.linspace(0, 255, GREYS)[:, None]
    light = np.linspace(0, 1, TINTS)[:, None]
    fills = ((LIVER_TINT, PURE_LIVER, LIVER, LIVER_COVER), (TUMOUR_TINT, PURE_TUMOUR, TUMOUR, TUMOUR_COVER))
    for start, pure, name, cover in fills:
        colours[pure] = [int(name[at : at + 2], 16) for at in (1, 3, 5)]
        shaded = colours[pure] * (cover + (1 - cover) * light)
        colours[start : start + TINTS] = cover * shaded + (1 - cover) * 255 * light
    return colours.round().astype(np.uint8)


def _frame(view: CaseView, scene: Scene, z: int, drawn: tuple[Frame, Frame]) -> Frame:
    empty, bar = drawn
    scan = _grey(view.image[scene.x, scene.y, z], scene)
    below = _lettered(scan, view, scene)  # a letter may lie over the scan, never over what is marked in it
    panels = below, below.copy()
    if view.reference is not None:
        for mask, colour in _masks(view.reference[scene.x, scene.y, z], scene, (PURE_LIVER, PURE_TUMOUR)):
            panels[0][mask & ~_inner(mask, 2)] = colour
    for mask, tint in _masks(view.prediction[scene.x, scene.y, z], scene, (LIVER_TINT, TUMOUR_TINT)):
        panels[1][mask] = tint + TINT_OF_GREY[scan[mask]]
        panels[1][mask & ~_inner(mask, 1)] = PURE_LIVER if tint == LIVER_TINT else PURE_TUMOUR
    picture = Pictures.fromarray(empty)
    for panel, box in zip(panels, panel_boxes(scene), strict=True):
        picture.paste(Pictures.fromarray(panel), box[:2])
    words = f"slice {z + 1} of {view.image.shape[2]}"
    ImageDraw.Draw(picture).text((GAP, scene.frame[1] - 33), words, INK, font(13), "lm")
    frame = np.array(picture)
    frame[-bar.shape[0] - 8 : -8, GAP : GAP + bar.shape[1]] = bar
    at = GAP + int((z + 0.5) / view.image.shape[2] * bar.shape[1])
    frame[-bar.shape[0] - 11 : -5, max(GAP, at - 1) : at + 2] = GREYS - 1
    return frame


def _grey(piece: UInt8[np.ndarray, "x y"], scene: Scene) -> Frame:
    """HU through the window, patient's right on the left and front up, in the scene's greys."""
    low, high = WINDOW_HU
    seen = np.clip((piece.astype(np.float32) - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
    smooth = Pictures.fromarray(_shown(seen)).resize(scene.size, Pictures.Resampling.BILINEAR)
    steps = np.arange(256) * scene.greys // 256  # equal shares of the window …
    levels = (steps * (GREYS - 1) / (scene.greys - 1)).round().astype(np.uint8)  # … black to white
    grey: Frame = levels[np.asarray(smooth)]
    return grey


def _masks(piece: Label, scene: Scene, values: tuple[int, int]) -> Iterator[tuple[Mask, int]]:
    """The liver with its tumours and then the tumours, as far as there are any, with their values."""
    for lowest, value in zip((1, 2), values, strict=True):
        mask = piece >= lowest
        if mask.any():
            yield _resize(_shown(mask), scene.size), value


def _resize(mask: Mask, size: tuple[int, int]) -> Mask:
    """A mask in pixels, smooth where there are more of them than voxels; no voxel is lost."""
    grey = Pictures.fromarray(mask.astype(np.uint8) * 255).resize(size, Pictures.Resampling.BILINEAR)
    found: Mask = np.asarray(grey) > 127
    rows, columns = np.nonzero(mask)
    high, wide = mask.shape
    places = (rows * 2 + 1) * size[1] // (2 * high), (columns * 2 + 1) * size[0] // (2 * wide)
    found[places] = True
    return found


def _shown(piece: Any) -> Any:
    """(x, y) as rows from the front to the back and columns from the patient's right to the left."""
    return np.ascontiguousarray(piece[::-1, ::-1].T)


def _inner(mask: Mask, pixels: int) -> Mask:
    """What is left of a mask when its border is taken off."""
    inner = np.pad(mask, pixels)
    for _ in range(pixels):
        inner[1:-1, 1:-1] = (
            inner[1:-1, 1:-1] & inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
        )
    return inner[pixels:-pixels, pixels:-pixels]


def _bar(view: CaseView, scene: Scene) -> Frame:
    """Where along z there is liver and tumour: a line for the reference above one for the prediction."""
    wide = scene.frame[0] - 2 * GAP
    of_slice = np.arange(wide) * view.image.shape[2] // wide
    colours = np.array([TRACK, PURE_LIVER, PURE_TUMOUR], np.uint8)[presence(view)[:, of_slice]]
    return np.repeat(colours, 10 // len(colours), axis=0)


def _empty(view: CaseView, scene: Scene) -> Frame:
    """What is the same in every frame: the case's name, what the panels show, what the colours mean."""
    picture = Pictures.new("L", scene.frame, GROUND)
    draw = ImageDraw.Draw(picture)
    right = scene.frame[0] - GAP
    keys = []
    for name, colour in (("tumour", PURE_TUMOUR), ("liver", PURE_LIVER)):
        right -= round(draw.textlength(name, font(13)))
        draw.text((right, 14), name, INK, font(13), "lm")
        keys.append((right - 15, 9, right - 4, 20, colour))
        right -= 28
    draw.text((GAP, 14), _fitting(draw, view.case, right - GAP - 8), INK, font(15), "lm")
    titles = ("no reference" if view.reference is None else "reference, outlined"), "prediction, filled"
    for title, box in zip(titles, panel_boxes(scene), strict=True):
        draw.text(((box[0] + box[2]) // 2, 35), title, FAINT, font(13), "mm")
    for left, top, end, bottom, colour in keys:
        draw.rectangle((left, top, end, bottom), colour)
    return np.array(picture)


def _fitting(draw: ImageDraw.ImageDraw, text: str, pixels: float) -> str:
    """A name as far as there is room for it."""
    if draw.textlength(text, font(15)) <= pixels:
        return text
    ends = range(len(text), 0, -1)
    return next((cut for end in ends if draw.textlength(cut := f"{text[:end]}…", font(15)) <= pixels), "…")


def _lettered(scan: Frame, view: CaseView, scene: Scene) -> Frame:
    """A scan with the patient's sides and a scale."""
    picture = Pictures.fromarray(scan)
    draw = ImageDraw.Draw(picture)
    halo: dict[str, Any] = {"stroke_width": 2, "stroke_fill": 0}
    wide, high = scene.size
    places = (
        (5, high // 2, "lm"),
        (wide - 5, high // 2, "rm"),
        (wide // 2, 4, "mt"),
        (wide // 2, high - 4, "mb"),
    )
    for letter, (x, y, anchor) in zip("RLAP", places, strict=True):
        draw.text((x, y), letter, INK, font(13), anchor, **halo)
    length = round(50 * wide / ((scene.x.stop - scene.x.start) * view.spacing_mm[0]))
    if length < wide / 3:
        draw.line((wide - 8 - length, high - 8, wide - 8, high - 8), INK, 2)
        draw.text((wide - 8 - length // 2, high - 13), "5 cm", INK, font(11), "mb", **halo)
    return np.array(picture)


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """The face of the other pictures."""
    import matplotlib as mpl

    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)
