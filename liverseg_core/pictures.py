"""A picture a person looks at: a case in three planes with its labels.

Figures are drawn through matplotlib's object interface, without pyplot's global state, so that any thread can
make them; the PNG holds neither date nor software, so that the same input gives the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from liverseg_core.arrays import Image, Label, Shape, Spacing
from liverseg_core.classes import GROUP_NAMES
from liverseg_core.drawing import BACKGROUND, FAINT, INK, LIVER, TUMOUR, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WINDOW_HU = (-160, 240)
BODY_HU = -200
"""What is brighter is body, for cropping."""

FILL_ALPHA = {1: 0.32, 2: 0.6}
"""A tumour is small, and lies in grey that the liver's purple has left alone."""

WIDTH_INCHES, HEADER_INCHES, FOOTER_INCHES, GAP_INCHES = 13.0, 0.72, 0.72, 0.12
Z_MARGIN_MM, BODY_MARGIN_MM = 45.0, 8.0
CONVENTION = (
    "Radiological convention: the patient's right is on the left of the axial and coronal planes; front is "
    f"up in axial, left in sagittal; head is up. CT window −{-WINDOW_HU[0]} to {WINDOW_HU[1]} HU."
)


@dataclass(frozen=True)
class Plane:
    """A plane through a canonical RAS+ volume, its horizontal axis reversed for display."""

    name: str
    through: int
    across: int
    up: int
    letters: str
    """What lies at its left, right, bottom and top."""


PLANES = (
    Plane("axial", 2, 0, 1, "RLPA"),
    Plane("coronal", 1, 0, 2, "RLIS"),
    Plane("sagittal", 0, 1, 2, "APIS"),
)


def overlay_png(
    path: Path, image: Image, label: Label | None, prediction: Label | None, spacing_mm: Spacing, title: str
) -> None:
    """Draw three planes through a case's largest tumour: prediction filled, reference outlined.

    Args:
        path: The PNG to write.
        image: HU, in canonical RAS+ order.
        label: The reference, or None.
        prediction: The model's label, or None.
        spacing_mm: For the physical aspect; the planes share one scale.
        title: Printed above.
    """
    from matplotlib.figure import Figure

    point = focus(label, prediction, image.shape)
    box = _visible_box(image, [mask for mask in (label, prediction) if mask is not None], spacing_mm, point)
    extent = [(part.stop - part.start) * s for part, s in zip(box, spacing_mm, strict=True)]
    scale = (WIDTH_INCHES - 4 * GAP_INCHES) / sum(extent[plane.across] for plane in PLANES)
    tallest = max(extent[plane.up] for plane in PLANES) * scale
    height = HEADER_INCHES + tallest + FOOTER_INCHES
    figure = Figure((WIDTH_INCHES, height), dpi=100, facecolor=BACKGROUND)
    left = GAP_INCHES
    for plane in PLANES:
        wide, high = extent[plane.across] * scale, extent[plane.up] * scale
        bottom = FOOTER_INCHES + tallest - high
        frame = (left / WIDTH_INCHES, bottom / height, wide / WIDTH_INCHES, high / height)
        axes = figure.add_axes(frame, facecolor="black")
        cuts = [None if v is None else _cut(v, plane, point, box) for v in (image, label, prediction)]
        _draw_plane(axes, plane, cuts, (extent[plane.across], extent[plane.up]))
        where = f"slice {point[plane.through] + 1} of {image.shape[plane.through]}"
        axes.set_title(f"{plane.name}, {where}", color=FAINT, fontsize=9, pad=4)
        left += wide + GAP_INCHES
    _draw_caption(figure, title, label is not None, prediction is not None)
    save_png(figure, path)


def case_title(case: str, score: Mapping[str, Any]) -> str:
    """What stands above a picture of a case: its name and Dice.

    Args:
        case: Its name.
        score: From `CaseScore.record`.
    """
    dice = {group: score[group]["dice"] for group in ("liver", "liver_only", "tumour")}
    told = (
        f"{GROUP_NAMES.get(group, group)} {'none' if value is None else f'{value:.3f}'}"
        for group, value in dice.items()
    )
    return f"{case}: Dice of {', '.join(told)}"


def focus(label: Label | None, prediction: Label | None, shape: Shape) -> tuple[int, int, int]:
    """The voxel to cut through: in the largest tumour, else the middle of the liver, else of the image.

    The reference is asked before the prediction.
    """
    masks = [mask for mask in (label, prediction) if mask is not None]
    for lowest_class in (2, 1):
        for mask in masks:
            inside = mask >= lowest_class
            if inside.any():
                return _middle(inside, largest=lowest_class == 2)
    x, y, z = (n // 2 for n in shape)
    return x, y, z


def _middle(mask: Bool[np.ndarray, "x y z"], largest: bool) -> tuple[int, int, int]:
    """The voxel of a mask, or of its largest component, that is nearest to its centre of mass."""
    from scipy.ndimage import label as components

    box = tuple(slice(low, high) for low, high in (_range(mask, axis) for axis in range(3)))
    inside = mask[box]
    if largest:
        numbered, _ = components(inside)
        inside = numbered == np.bincount(numbered.ravel())[1:].argmax() + 1
    voxels = np.argwhere(inside)
    nearest = voxels[((voxels - voxels.mean(0)) ** 2).sum(1).argmin()]
    x, y, z = (int(v) + part.start for v, part in zip(nearest, box, strict=True))
    return x, y, z


def _range(mask: Bool[np.ndarray, "..."], axis: int) -> tuple[int, int]:
    """First and one past last index along an axis that holds anything; the whole axis where nothing does."""
    others = tuple(other for other in range(mask.ndim) if other != axis)
    held = np.flatnonzero(mask.any(others))
    return (int(held[0]), int(held[-1]) + 1) if len(held) else (0, mask.shape[axis])


def _visible_box(
    image: Image, masks: Sequence[Label], spacing_mm: Spacing, point: Shape
) -> tuple[slice, slice, slice]:
    """The part of the scan to show: the body's width and depth, and the labels' height with a margin."""
    axial, coronal, sagittal = (np.take(image, point[through], through) > BODY_HU for through in (2, 1, 0))
    x = _range(axial | coronal.any(1, keepdims=True), 0)
    y = _range(axial | sagittal.any(1), 1)
    heights = [_range(mask > 0, 2) for mask in masks if mask.any()] or [(0, image.shape[2])]
    z = (min(low for low, _ in heights), max(high for _, high in heights))
    margins = (BODY_MARGIN_MM, BODY_MARGIN_MM, Z_MARGIN_MM)
    parts = zip((x, y, z), margins, spacing_mm, image.shape, strict=True)
    a, b, c = (
        slice(max(0, low - round(margin / s)), min(n, high + round(margin / s)))
        for (low, high), margin, s, n in parts
    )
    return a, b, c


def _cut(volume: Any, plane: Plane, point: Shape, box: tuple[slice, slice, slice]) -> Any:
    """A plane as rows from bottom to top and columns from left to right."""
    index: list[int | slice] = list(box)
    index[plane.through] = point[plane.through]
    return volume[tuple(index)][::-1].T


def _draw_plane(axes: "Axes", plane: Plane, cuts: Sequence[Any], size_mm: tuple[float, float]) -> None:
    from matplotlib.patheffects import withStroke

    image, label, prediction = cuts
    halo = withStroke(linewidth=2.5, foreground="black")
    wide, high = size_mm
    low_hu, high_hu = WINDOW_HU
    axes.imshow(
        image, cmap="gray", vmin=low_hu, vmax=high_hu, origin="lower", extent=(0, wide, 0, high),
        aspect="auto", interpolation="bilinear",
    )  # fmt: skip
    centres = [(np.arange(n) + 0.5) * size / n for n, size in zip(image.shape[::-1], size_mm, strict=True)]
    for lowest_class, colour in ((1, LIVER), (2, TUMOUR)):
        if prediction is not None and _drawable(prediction == lowest_class):
            filled = prediction == lowest_class
            axes.contourf(
                *centres, filled, levels=[0.5, 1.5], colors=[colour], alpha=FILL_ALPHA[lowest_class]
            )
        if label is not None and _drawable(label >= lowest_class):
            axes.contour(*centres, label >= lowest_class, levels=[0.5], colors=[colour], linewidths=1.5)
    axes.set(xlim=(0, wide), ylim=(0, high), xticks=[], yticks=[])
    axes.spines[:].set_color("#2c2c34")
    places = ((0.015, 0.5, "left", "center"), (0.985, 0.5, "right", "center"),
              (0.5, 0.015, "center", "bottom"), (0.5, 0.985, "center", "top"))  # fmt: skip
    for letter, (x, y, across, up) in zip(plane.letters, places, strict=True):
        axes.text(
            x,
            y,
            letter,
            color=INK,
            fontsize=10,
            ha=across,
            va=up,
            transform=axes.transAxes,
            path_effects=[halo],
        )
    if plane.name == "axial":
        axes.plot([wide - 58, wide - 8], [7, 7], color=INK, linewidth=2, solid_capstyle="butt")
        axes.text(wide - 33, 10, "5 cm", color=INK, fontsize=8, ha="center", va="bottom")


def _drawable(mask: Bool[np.ndarray, "h w"]) -> bool:
    """Whether matplotlib can contour it: something is there, and the grid is at least 2 × 2."""
    return bool(mask.any()) and min(mask.shape) > 1


def _draw_caption(figure: "Figure", title: str, with_label: bool, with_prediction: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    width, height = figure.get_size_inches()
    margin = GAP_INCHES / width
    figure.text(
        margin, 1 - 0.16 / height, title, color=INK, fontsize=13, va="top", ha="left", parse_math=False
    )
    figure.text(margin, 0.14 / height, CONVENTION, color=FAINT, fontsize=8.5, va="bottom", ha="left")
    classes = (("liver", LIVER), ("tumour", TUMOUR))
    handles: list[Any] = []
    if with_label:
        handles += [Line2D([], [], color=c, linewidth=1.8, label=f"reference {name}") for name, c in classes]
    if with_prediction:
        handles += [Patch(facecolor=c, alpha=0.5, label=f"predicted {name}") for name, c in classes]
    if handles:
        figure.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(margin, 0.3 / height), ncols=len(handles),
            frameon=False, labelcolor=INK, fontsize=9.5, handlelength=1.6, borderaxespad=0, borderpad=0.3,
        )  # fmt: skip
