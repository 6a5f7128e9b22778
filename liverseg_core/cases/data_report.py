"""What a person should know of every case before training on it: measures, and flags for what looks odd.

Pure functions of the facts that `ingest` stores and `verify` gathers. The bounds are wide: a flag says "look
at this one", never "leave it out". They are in no key, so a bound can change without a case going stale.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from liverseg_core.arrays import Spacing
from liverseg_core.cases.anatomy import lying

THICK_MM = 5.0
"""Thicker slices than in any scan of Task03_Liver blur small lesions away."""
BODY_CM2 = (100.0, 2000.0)
"""Mean cross-section: a small child has 150 cm², 50 × 50 cm of severe obesity 1,960."""
LIVER_ML = (500.0, 4500.0)
"""With tumours: what a large resection leaves, and a massively enlarged liver; healthy adults have 1,000 to
2,500 ml."""
CUT_CM2 = 10.0
"""Of liver on a face of the scan: what goes on beyond a smaller section is the tip of a dome."""
MEDIAN_HU = (-200, 300)
"""Of what is brighter than −500 HU: between all fat and all contrast."""
HIGHEST_P95_HU = 700
"""Bone and contrast fill far less than a twentieth of a body; water stored 1,024 too high would be here."""
LEAST_AIR = 0.001
"""Share of voxels at −500 HU or below: around every body, and in its bowel and lungs, there is air."""

NAMED = 5
"""How many of the cases with the same voxels a row names."""

REMEDY = "in the override file (ingest.spacing_overrides)"
AXES_REMEDY = f"look at its picture, and give its axes {REMEDY}"

SHOWN_PERCENTILES = ("p0.5", "p50", "p99.5")
BODY_COLUMN = f"body HU, {' '.join(SHOWN_PERCENTILES)}"
BODY_MEANING = "body HU: these percentiles of all that is brighter than −500 HU"

HEADINGS = ("case", "shape", "spacing mm", "axes", BODY_COLUMN, "liver ml", "tumour ml", "tumours", "flags")

MEANING: Mapping[str, str] = {
    "identity-affine": "the header says 1 × 1 × 1 mm along the axes, as where the true spacing was lost: "
    f"give it {REMEDY}",
    "spacing-overridden": "the header's spacing was replaced by the override file's",
    "axes-overridden": "the header's axes were replaced by the override file's",
    "pixdim-disagrees": "the spacings of pixdim and affine differ by more than 1 %; the second is used: give "
    f"the true one {REMEDY}",
    "no-orientation": "neither sform nor qform is set: left and right may be swapped",
    "qform-disagrees": "sform and qform place the scan differently; the sform is used",
    "spine-in-front": f"bone lies in front of the body's middle: turned or mirrored; {AXES_REMEDY}",
    "liver-on-the-left": "the liver seems to lie on the left, as in 1 patient of 10,000: turned or mirrored; "
    f"{AXES_REMEDY}",
    "lungs-below": f"lungs lie below the rest: head and feet are swapped; {AXES_REMEDY}",
    "lies-across": f"no body lies along these axes as the header says; {AXES_REMEDY}",
    "thick-slices": f"voxels longer than {THICK_MM:g} mm",
    "implausible-body": f"mean cross-section of the body outside {BODY_CM2[0]:g} to {BODY_CM2[1]:g} cm²",
    "odd-hu-offset": "no air near −1000 HU, or soft tissue far from 0: an offset such as 1024 may be missing",
    "no-liver": "the label has no liver voxel",
    "implausible-liver": f"liver with tumours outside {LIVER_ML[0]:g} to {LIVER_ML[1]:g} ml",
    "liver-cut-off": f"{CUT_CM2:g} cm² of liver or more lie on a face of the scan: it goes on beyond",
    "tumour-outside-liver": "a labelled tumour touches no labelled liver",
    "duplicate-voxels": "another case has the same voxels, under whatever header: remove one of them",
    "no-frame-of-reference": "the DICOM series has no FrameOfReferenceUID; its SEG has one of its own",
    "no-study-uid": "the DICOM series has no StudyInstanceUID; its SEG has one of its own",
    "no-series-uid": "the DICOM series has no SeriesInstanceUID: all slices of its folder are taken for one",
    "no-slice-uids": "slices of the DICOM series have no SOPInstanceUIDs of their own: no SEG can name them",
}
"""Flag → what it says, in the order in which they are shown."""


@dataclass(frozen=True)
class CaseRow:
    """A case in the data report; None where it could not be read that far.

    Args:
        case: Its name.
        labelled: Whether it has a label.
        shape: Voxels along the stored axes.
        spacing_mm: Along the stored axes.
        orientation: What the stored axes run towards, such as LPS.
        body_hu: `SHOWN_PERCENTILES` of what is brighter than −500 HU.
        liver_ml: Liver with tumours.
        tumour_ml: Tumours.
        tumours: 6-connected components.
        flags: Names in `MEANING`.
        same_voxels_as: The first `NAMED` other cases behind `duplicate-voxels`.
        problem: Why the case can't be used.
        stored_liver_ml: Liver with tumours in the label as it is, or would be, stored for training.
        stored_tumour_ml: Tumours in it.
    """

    case: str
    labelled: bool | None
    shape: tuple[int, ...] | None = None
    spacing_mm: tuple[float, ...] | None = None
    orientation: str | None = None
    body_hu: Mapping[str, int] | None = None
    liver_ml: float | None = None
    tumour_ml: float | None = None
    tumours: int | None = None
    flags: tuple[str, ...] = ()
    same_voxels_as: tuple[str, ...] = ()
    problem: str | None = None
    stored_liver_ml: float | None = None
    stored_tumour_ml: float | None = None


def describe(found: Iterable[Mapping[str, Any]]) -> list[CaseRow]:
    """One row a case, by name; cases of equal voxels are flagged with others' names.

    Args:
        found: The facts of each case; of one that could not be read, `case`, `labelled` and `problem`.
    """
    rows: dict[str, CaseRow] = {}
    same: defaultdict[str, list[str]] = defaultdict(list)
    for facts in found:
        name = facts["case"]
        if facts.get("problem"):
            rows[name] = CaseRow(name, facts.get("labelled"), problem=facts["problem"])
        else:
            rows[name] = _row(facts)
            if "identity" in facts:  # not in a case that an earlier version stored
                same[facts["identity"]["voxels"]].append(name)
    for names in same.values():
        first = sorted(names)[: NAMED + 1]
        for name in names if len(names) > 1 else ():
            others = tuple(other for other in first if other != name)[:NAMED]
            flags = (*rows[name].flags, "duplicate-voxels")
            rows[name] = replace(rows[name], flags=flags, same_voxels_as=others)
    return [rows[name] for name in sorted(rows)]


def cells(row: CaseRow) -> list[str]:
    """The row's texts under `HEADINGS`, then its problem; what is not known is empty."""
    flags = [
        f"{flag} ({', '.join(row.same_voxels_as)})" if flag == "duplicate-voxels" else flag
        for flag in row.flags
    ]
    return [
        row.case,
        "×".join(map(str, row.shape or ())),
        " ".join(f"{value:.4g}" for value in row.spacing_mm or ()),
        row.orientation or "",
        " ".join(map(str, (row.body_hu or {}).values())),
        "" if row.liver_ml is None else f"{row.liver_ml:.0f}",
        "" if row.tumour_ml is None else f"{row.tumour_ml:.1f}",
        "" if row.tumours is None else str(row.tumours),
        ", ".join(flags),
        row.problem or "",
    ]


def volumes_ml(facts: Mapping[str, Any]) -> tuple[float, float] | None:
    """Liver with tumours, and tumours alone, on the label's own voxels; None without a label."""
    label = facts["native_label"]
    return label and _ml(label["voxels"], facts["native_spacing_mm"])


def _ml(voxels: Sequence[int], spacing_mm: Sequence[float]) -> tuple[float, float]:
    _, liver, tumour = voxels
    voxel_ml = math.prod(spacing_mm) / 1000
    return (liver + tumour) * voxel_ml, tumour * voxel_ml


def edge_cm2(voxels: Sequence[int], spacing_mm: Spacing) -> float:
    """The largest area that liver takes of a face of its scan.

    Args:
        voxels: On the two faces across z, then across y, then across x.
        spacing_mm: Along x, y and z.
    """
    x, y, z = spacing_mm
    faces_mm2 = (x * y, x * y, x * z, x * z, y * z, y * z)
    return max(int(n) * mm2 for n, mm2 in zip(voxels, faces_mm2, strict=True)) / 100


def flags_of(facts: Mapping[str, Any]) -> Iterator[str]:
    """The flags of one case: what its header and label gave, then what its measures suggest."""
    yield from facts["flags"]
    if max(facts["native_spacing_mm"]) > THICK_MM * 1.001:  # single precision and rotation cost some digits
        yield "thick-slices"
    fingerprint = facts["fingerprint"]
    (x, y, z), (wide, deep, _) = facts["shape"], facts["spacing_mm"]
    if not BODY_CM2[0] <= fingerprint["body_voxels"] / z * wide * deep / 100 <= BODY_CM2[1]:
        yield "implausible-body"
    if _odd_offset(fingerprint["body_hu"], fingerprint["body_voxels"] / (x * y * z)):
        yield "odd-hu-offset"
    else:  # anatomy is told by its HU
        yield from lying(facts.get("anatomy"))
    volumes = volumes_ml(facts)
    if volumes and facts["native_label"]["voxels"][1] and not LIVER_ML[0] <= volumes[0] <= LIVER_ML[1]:
        yield "implausible-liver"
    if volumes and facts["native_label"].get("edge_cm2", 0) >= CUT_CM2:
        yield "liver-cut-off"
    if volumes and facts["native_label"]["tumours_outside_liver"]:
        yield "tumour-outside-liver"


def _odd_offset(body: Mapping[str, Any] | None, share: float) -> bool:
    if body is None:  # nothing is brighter than −500 HU
        return True
    low, high = MEDIAN_HU
    return share > 1 - LEAST_AIR or not low <= body["p50"] <= high or body["p95"] > HIGHEST_P95_HU


def _row(facts: Mapping[str, Any]) -> CaseRow:
    fingerprint, volumes, label = facts["fingerprint"], volumes_ml(facts), facts["native_label"]
    body, stored = fingerprint["body_hu"], label and _ml(fingerprint["voxels"], facts["spacing_mm"])
    return CaseRow(
        case=facts["case"],
        labelled=facts["labelled"],
        shape=tuple(facts["native_shape"]),
        spacing_mm=tuple(round(value, 4) for value in facts["native_spacing_mm"]),
        orientation=facts["orientation"],
        body_hu=body and {name: body[name] for name in SHOWN_PERCENTILES},
        liver_ml=volumes and round(volumes[0], 2),
        tumour_ml=volumes and round(volumes[1], 2),
        tumours=label and label["tumours"],
        flags=tuple(flags_of(facts)),
        stored_liver_ml=stored and round(stored[0], 2),
        stored_tumour_ml=stored and round(stored[1], 2),
    )
