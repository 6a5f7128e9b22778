"""What there is to doubt about a prediction: the scan, by the flags of the data report, and the answer.

A doubt says "look at this one". Bounds are wide, and in no key.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cc3d
import numpy as np

from liverseg_core.arrays import Label, Spacing
from liverseg_core.artifacts.artifact import Facts
from liverseg_core.cases.data_report import MEANING, edge_cm2, flags_of
from liverseg_core.cases.scan_identity import ScanIdentity
from liverseg_core.inference.postprocess import bounding_box, counts
from liverseg_core.models.known_data import KnownData, SeenCase

SECOND_PART = 0.1
"""Share of the largest part from which on another one is no crumb: a spleen taken for liver is more."""
COARSE_MM = 2.0
"""A part that such steps miss is no liver."""
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


def label_facts(label: Label, found: Mapping[str, Any], spacing_mm: Spacing) -> Facts:
    """What `liverseg_core.cases.label_survey` finds of a label, of a prediction.

    Args:
        label: Canonical.
        found: What `findings` says of it.
        spacing_mm: Of its voxels.
    """
    voxel_ml = math.prod(spacing_mm) / 1000
    tumour = round(found["tumour_ml"] / voxel_ml)
    faces = [np.moveaxis(label, axis, 0)[end] for axis in (2, 1, 0) for end in (0, -1)]
    return {
        "voxels": [0, round(found["liver_ml"] / voxel_ml) - tumour, tumour],
        "tumours": found["lesions"],
        # more than can be are doubted anyway, and noise would cost as much as all the rest
        "tumours_outside_liver": _outside(label) if 0 < found["lesions"] <= MOST_LESIONS else 0,
        "edge_cm2": edge_cm2([int(np.count_nonzero(face)) for face in faces], spacing_mm),
    }


def second_part(label: Label, spacing_mm: Spacing) -> float:
    """The second of the label's parts as a share of the first, on voxels about `COARSE_MM` apart."""
    x, y, z = (max(1, round(COARSE_MM / mm)) for mm in spacing_mm)
    some = np.asfortranarray(label[::x, ::y, ::z] > 0)
    sizes = np.sort(counts(cc3d.connected_components(some, connectivity=6))[1:])[::-1]
    return float(sizes[1] / sizes[0]) if sizes.size > 1 else 0.0


def doubts(scan: Facts, found: Mapping[str, Any], second: float, known: KnownData) -> Doubts:
    """What there is to doubt, in the order of importance to whoever reads the answer.

    Args:
        scan: The facts of the scan, with those of the prediction in the place of its label's.
        found: What `findings` says of the prediction.
        second: Its `second_part`, before the rules for labels or after, whichever is larger.
        known: What the model knows of data.
    """
    return {flag: told or MEANING[flag] for flag, told in _doubts(scan, found, second, known)}


def _doubts(
    scan: Facts, found: Mapping[str, Any], second: float, known: KnownData
) -> Iterator[tuple[str, str]]:
    identity = scan.get("identity")
    if known.seen and identity:
        yield from _seen(known.seen.find(ScanIdentity(**identity)))
    none = [] if scan["native_label"]["voxels"][1] else ["no-liver"]
    flags = [flag for flag in scan["flags"] if flag != "no-liver"] + none
    for flag in flags_of({**scan, "flags": flags}):
        yield flag, ""
    if second > SECOND_PART:
        yield "several-livers", f"the label's second part is {second:.0%} of its first"
    lesions, largest_mm = found["lesions"], found["largest_diameter_mm"]
    if lesions > MOST_LESIONS or largest_mm > LARGEST_MM:
        yield "implausible-lesions", f"{lesions} lesions, up to {largest_mm:.0f} mm"
    for name, flag in (("liver", "liver-beyond-measured"), ("tumour", "tumour-beyond-measured")):
        yield from _beyond(flag, name, found[f"{name}_ml"], known)


def _outside(label: Label) -> int:
    """How many tumours touch no voxel of class 1 with a face."""
    box = bounding_box(label == 2)
    assert box is not None
    around = label[tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)]
    liver, tumour = around == 1, around == 2
    near = np.zeros_like(liver)
    for axis in range(3):
        there, beside = np.moveaxis(near, axis, 0), np.moveaxis(liver, axis, 0)
        there[1:] |= beside[:-1]
        there[:-1] |= beside[1:]
    components, count = cc3d.connected_components(tumour, connectivity=6, return_N=True)
    return int(count - np.unique(components[near & tumour]).size)


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
