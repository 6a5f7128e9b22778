"""What there is to doubt about a prediction: the scan, by the flags of the data report, and the answer.

A doubt says "look at this one". Bounds are wide, and in no key.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np

from liverseg_core.arrays import Label, Spacing
from liverseg_core.artifacts.artifact import Facts
from liverseg_core.cases.data_report import MEANING, edge_cm2, flags_of
from liverseg_core.cases.scan_identity import ScanIdentity
from liverseg_core.inference.postprocess import bounding_box, counts, with_liver
from liverseg_core.models.known_data import KnownData, SeenCase

SECOND_PART = 0.1
"""Share of the largest part from which on another one is no crumb: a spleen taken for liver is more."""
MOST_LESIONS = 75
"""As many as any patient of the LiTS challenge has (Bilic et al., 2023)."""
LARGEST_MM = 250.0
"""Livers are seldom wider."""
MARGIN = 1.5
"""How far volumes may lie beyond all that the model was trained and measured on, as a factor."""

NOTE = "liverseg: "
"""Begins the note in a label file."""
SEEN_FLAGS = ("seen-in-training", "seen-in-validation")

Doubts = dict[str, str]
"""Flag → what it says of this scan."""


@dataclass(frozen=True)
class Parts:
    """How a label of liver and tumours hangs together: its 6-connected parts.

    Args:
        voxels: Of classes 1 and 2 together, in the largest part and in the next.
        without_liver: How many parts hold no voxel of class 1: tumours that no liver adjoins.
        edge_cm2: How much of a face of the scan the largest takes.
    """

    voxels: tuple[int, int] = (0, 0)
    without_liver: int = 0
    edge_cm2: float = 0.0


def parts_of(label: Label, spacing_mm: Spacing) -> Parts:
    """The parts of a label volume."""
    box = bounding_box(label > 0)
    if box is None:
        return Parts()
    inside = label[box]
    components = cc3d.connected_components(inside > 0, connectivity=6)
    sizes = counts(components)[1:]
    largest = 1 + int(sizes.argmax())
    second = int(np.partition(sizes, -2)[-2]) if sizes.size > 1 else 0
    without = int(sizes.size - with_liver(inside, components, sizes.size + 1)[1:].sum())
    on_faces = [
        int((components.take(end, axis) == largest).sum()) if at_edge else 0
        for axis, (side, size) in reversed([*enumerate(zip(box, label.shape, strict=True))])
        for end, at_edge in ((0, side.start == 0), (-1, side.stop == size))
    ]
    return Parts((int(sizes[largest - 1]), second), without, edge_cm2(on_faces, spacing_mm))


def doubts(scan: Facts, found: Mapping[str, Any], parts: tuple[Parts, Parts], known: KnownData) -> Doubts:
    """What there is to doubt, in the order of importance to whoever reads the answer.

    Args:
        scan: The facts of the scan; of a label in them nothing is used.
        found: What `findings` says of the prediction.
        parts: Of its label, before the rules for labels and after.
        known: What the model knows of data.
    """
    return {flag: told or MEANING[flag] for flag, told in _doubts(scan, found, parts, known)}


def _doubts(
    scan: Facts, found: Mapping[str, Any], parts: tuple[Parts, Parts], known: KnownData
) -> Iterator[tuple[str, str]]:
    before, after = parts
    identity = scan.get("identity")
    if known.seen and identity:
        yield from _seen(known.seen.find(ScanIdentity(**identity)))
    for flag in flags_of(_as_labelled(scan, found, after)):
        yield flag, ""
    first, second = max(before, after, key=lambda one: one.voxels[1]).voxels
    if second > SECOND_PART * first:
        yield "several-livers", f"the label's second part is {second / first:.0%} of its first"
    lesions, largest_mm = found["lesions"], found["largest_diameter_mm"]
    if lesions > MOST_LESIONS or largest_mm > LARGEST_MM:
        yield "implausible-lesions", f"{lesions} lesions, up to {largest_mm:.0f} mm"
    for name, flag in (("liver", "liver-beyond-measured"), ("tumour", "tumour-beyond-measured")):
        yield from _beyond(flag, name, found[f"{name}_ml"], known)


def _as_labelled(scan: Facts, found: Mapping[str, Any], parts: Parts) -> Facts:
    """The facts as they would be if the prediction were the scan's label."""
    voxel_ml = math.prod(scan["native_spacing_mm"]) / 1000
    liver, tumour = ((found["liver_ml"] - found["tumour_ml"]) / voxel_ml, found["tumour_ml"] / voxel_ml)
    label = {
        "voxels": (0, liver, tumour),
        "tumours": found["lesions"],
        "tumours_outside_liver": parts.without_liver,
        "edge_cm2": parts.edge_cm2,
    }
    flags = [flag for flag in scan["flags"] if flag != "no-liver"] + ["no-liver"] * (not liver)
    return {**scan, "native_label": label, "flags": flags}


def _seen(cases: Sequence[SeenCase]) -> Iterator[tuple[str, str]]:
    """At most one flag: what spoils the answer most."""
    for one in cases[:1]:
        what = {"training": "trained", "validation": "chose and measured"}[one.role]
        whom = "the weights that the model began with" if one.before else "the model"
        whom += f" (member {one.member})" if one.member else ""
        yield f"seen-in-{one.role}", f"this scan {what} {whom}, as case {one.case}"


def _beyond(flag: str, name: str, volume_ml: float, known: KnownData) -> Iterator[tuple[str, str]]:
    span = known.range_ml("liver_ml" if name == "liver" else "tumour_ml")
    if span is None:
        return
    low, high = span
    small = name == "liver" and volume_ml < low / MARGIN  # of tumours there may be none
    if small or volume_ml > high * MARGIN:
        yield flag, f"{name} {volume_ml:.0f} ml, where the model knows {low:.0f} to {high:.0f} ml"
