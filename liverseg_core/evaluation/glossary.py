"""What every figure is called, what it means, and which published table it may stand beside: said once.

Tables in terminals, the report, the model card, names in MLflow and docs/measures.md take their words from
here. `python -m liverseg_core.evaluation.glossary > docs/measures.md` writes that page; a test holds it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from liverseg_core.classes import GROUP_NAMES

TOLERANCE_MM = 2.0
"""What NSD forgives, unless `evaluate.nsd_tolerance_mm` or `liverseg score --tolerance` says otherwise."""
OURS = "none: other programmes define it otherwise"


@dataclass(frozen=True)
class Term:
    """A figure's or a class group's name and meaning."""

    name: str
    """Its key in JSON, CSV and MLflow."""
    label: str
    """What tables call it."""
    meaning: str
    beside: str = ""
    """Published tables that it may be compared with."""
    unit: str = ""
    digits: int = 3
    hint: str = ""
    """A few words for a table that has room for them."""

    @property
    def title(self) -> str:
        """A column's heading: `ASSD mm`."""
        return f"{self.label} {self.unit}".strip()

    @property
    def line(self) -> str:
        """A row's heading: `RVD, above 0: too much predicted`."""
        return ", ".join(part for part in (self.label, self.hint or self.unit) if part)


GROUPS = (
    Term("liver", GROUP_NAMES["liver"], "labels 1 and 2", "LiTS, the Decathlon, CHAOS: all mean this one"),
    Term("liver_only", GROUP_NAMES["liver_only"], "label 1 alone", "papers that say “tumour excluded”"),
    Term("tumour", GROUP_NAMES["tumour"], "label 2", "LiTS, the Decathlon"),
)
DICE = {
    "nan": Term(
        "dice",
        "Dice",
        "2·|P ∩ R| / (|P| + |R|) of predicted and reference voxels; a case in which neither has any is left "
        "out. In MLflow `dice_nan`",
        "nnU-Net and papers that compute Dice as it does; LiTS “per case”, the Decathlon and MedSAM for "
        "livers, which every case has",
        hint="cases with neither left out",
    ),
    "lits": Term(
        "dice_lits",
        "Dice, empty = 1",
        "the same, and 1 where neither has any voxel: a case without tumours is 1 where none is predicted, "
        "else 0",
        "LiTS “Dice per case”",
        hint="1 where neither has any, 0 for false alarms",
    ),
    "pooled": Term(
        "dice_pooled",
        "Dice, pooled",
        "one Dice of the voxels of all cases together; in summaries `policies.pooled`",
        "LiTS “Dice global”",
        hint="all cases' voxels together",
    ),
}
"""Policies for a class that neither label has: means under different ones are not comparable."""
OVERLAP = (
    Term("voe", "VOE", "volume overlap error, 1 − Jaccard", "LiTS, for livers", hint="1 − Jaccard"),
    Term(
        "rvd",
        "RVD",
        "relative volume difference (|P| − |R|) / |R|: above 0 where too much is predicted",
        "CHAOS's RAVD is its size in percent. Not LiTS's: its notebook gives (|R| − |P|) / |P|, of the "
        "opposite sign and by the predicted volume",
        hint="above 0: too much predicted",
    ),
)
SURFACES = (
    Term(
        "assd_mm",
        "ASSD",
        "average symmetric surface distance. The surface of a mask is what its erosion by the "
        "6-neighbourhood takes away; where the scan cuts an organ off, its cut is measured to, not from",
        "CHAOS, for livers that no scan cuts off",
        "mm",
        2,
    ),
    Term(
        "assd_lits_mm",
        "ASSD (LiTS)",
        "as the LiTS programme computes it: erosion by the 18-neighbourhood, and the cut counts as surface",
        "LiTS, for livers. Its tumour figures are of detected lesions alone",
        "mm",
        2,
    ),
    Term("rmsd_mm", "RMSD", "root of the mean square of the distances of `assd_mm`", OURS, "mm", 2),
    Term(
        "hd95_mm",
        "HD95",
        "95th percentile of the distances of `assd_mm`, of the worse direction",
        "MONAI, for organs that no scan cuts off. medpy pools the directions, DeepMind's surface-distance "
        "weighs the surface by its area",
        "mm",
        2,
    ),
    Term(
        "mssd_mm",
        "MSSD",
        "largest of the distances of `assd_mm`: the Hausdorff distance",
        "CHAOS, for livers that no scan cuts off",
        "mm",
        2,
    ),
    Term(
        "surface_dice_2mm",
        "surface Dice at 2 mm",
        "share of both surfaces' voxels whose distance is at most 2 mm",
        "none: published ones weigh the surface by its area, as NSD does",
    ),
)
VOLUMES = (
    Term("volume_ml", "predicted volume", "of the scan's own voxels", "", "ml", 1),
    Term("reference_volume_ml", "reference volume", "of the scan's own voxels", "", "ml", 1),
)
LESIONS = {
    "found": Term(
        "lesions_iou_50",
        "lesions found (IoU > 0.5)",
        "connected tumours of the reference (6-neighbourhood) whose match has an IoU above 0.5. Matches may "
        "be of several: a merge, a split. **The primary definition of detection**, wherever lesions are "
        "called found",
        "LiTS means the same; its programme numbers merged lesions wrongly, so its counts may differ",
    ),
    "false": Term(
        "lesions_iou_50",
        "false lesions (IoU > 0.5)",
        "predicted connected tumours that are in no such match: `prediction` less `correct`",
    ),
    "touched": Term(
        "lesions_iou_0",
        "lesions touched (any voxel shared)",
        "tumours that share at least one voxel with any predicted one. Says nothing of how well; shown only "
        "beside lesions found",
        "papers that call a lesion detected at any overlap",
    ),
    "rates": Term(
        "recall, precision, f1",
        "recall, precision, F1",
        "found of all in the reference; right of all predicted; their harmonic mean. Counts of all cases are "
        "added first. In MLflow `evaluate/lesions_iou_50/…`",
        "LiTS at IoU > 0.5",
    ),
    "sizes": Term(
        "below_10_mm, from_10_to_20_mm, from_20_mm",
        "below 10 mm, 10 to 20 mm, 20 mm and above",
        "diameter of a ball of the lesion's volume; of the reference lesion for recall, the predicted one "
        "for precision",
        "LiTS",
    ),
    "matched": Term(
        "matched",
        "matches",
        "mean Dice, RVD and ASSD of the matches with IoU > 0.5; ASSD of at most the 500 largest of a case",
    ),
    "burden": Term(
        "burden",
        "tumour burden",
        "tumour ÷ liver with tumour; root mean square error (`burden_rmse` in MLflow) and largest error over "
        "cases with a liver in both labels",
        "LiTS",
    ),
}


def nsd_term(tolerance_mm: float = TOLERANCE_MM) -> Term:
    """The normalised surface distance at a tolerance, which its name says."""
    told = str(float(tolerance_mm)).removesuffix(".0")
    return Term(
        f"nsd_{told}mm",
        f"NSD at {told} mm",
        "normalised surface distance: share of both surfaces' area within the tolerance, by marching cubes. "
        "0 where one label has none of the class, left out where neither has. The cut counts as surface",
        "the Decathlon, FLARE, MedSAM and papers after it: equal to DeepMind's surface-distance and MONAI's "
        "`use_subvoxels`, at the same tolerance: 2 mm in MedSAM's papers; for others set what theirs name",
    )


def measures(tolerance_mm: float = TOLERANCE_MM) -> dict[str, Term]:
    """The measures of a class group in a case's record and a summary, by name and in order."""
    terms = (DICE["nan"], DICE["lits"], *OVERLAP, *SURFACES, nsd_term(tolerance_mm), *VOLUMES)
    return {term.name: term for term in terms}


def term(name: str) -> Term:
    """A measure by its name, `nsd_…mm` at any tolerance among them."""
    if name.startswith("nsd_"):
        return nsd_term(float(name.removeprefix("nsd_").removesuffix("mm")))
    return measures()[name]


CRITERION_NAMES = {"iou_50": "IoU > 0.5", "iou_0": "any voxel shared"}
"""What makes a lesion found, and what merely touched."""
LITTLE = """\
Written from `liverseg_core/evaluation/glossary.py`, where tables, report and MLflow have their words from.

P is the predicted label, R the reference, both on the scan's own voxels; distances are in millimetres between
the middles of voxels. A measure that is not defined in a case, such as a distance to an empty mask, is null
and left out of means, whose `n` says of how many cases they are. Figures of different cases, of different
policies for empty labels or of different surfaces may not be compared; the last column names the published
ones beside which a figure may stand, were the cases the same.
"""
MLFLOW = """\
## Names in MLflow

`evaluate/GROUP/NAME` is the mean over the validation cases, with GROUP and NAME as above; of Dice
`dice_nan`, `dice_lits`, `dice_pooled`, and `dice_median` and `dice_sd` under the policy of `dice_nan`.
`evaluate/lesions_iou_50/recall`, `…/precision` and `…/f1` are of the primary definition of detection.
`evaluate/burden_rmse` is of tumour burden."""


def page() -> str:
    """docs/measures.md."""
    sections = {
        "Class groups": GROUPS,
        "Overlap": (*DICE.values(), *OVERLAP),
        "Surfaces": (*SURFACES, nsd_term()),
        "Volumes": VOLUMES,
        "Lesions and tumour burden": tuple(LESIONS.values()),
    }
    tables = "\n\n".join("\n".join(_table(title, terms)) for title, terms in sections.items())
    return f"# What is measured\n\n{LITTLE}\n{tables}\n\n{MLFLOW}\n"


def _table(title: str, terms: tuple[Term, ...]) -> Iterator[str]:
    yield f"## {title}\n"
    yield "| name | in tables | what it is | may stand beside |\n|---|---|---|---|"
    for one in terms:
        cells = (f"`{one.name}`", one.title, one.meaning, one.beside)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    print(page(), end="")
