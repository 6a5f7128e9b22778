"""The report's tables: against others, all measures, lesions, every case."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from liverseg_core.evaluation.comparison import compare, scores_of
from liverseg_core.evaluation.lesions import CRITERIA
from liverseg_core.evaluation.measures import MEASURES
from liverseg_core.page import cell, head
from liverseg_core.report.results import (
    CAVEAT,
    CRITERION_NAMES,
    GROUP_NAMES,
    POLICY_NAMES,
    PUBLISHED,
    SIZE_NAMES,
    Results,
    Scores,
    headline,
    number,
    with_interval,
)
from liverseg_core.report.sources import Rival

MEASURE_NAMES = {
    "dice": "Dice",
    "dice_lits": POLICY_NAMES["lits"],
    "voe": "VOE, 1 − Jaccard",
    "rvd": "RVD, above 0: too much predicted",
    "assd_mm": "ASSD, mm",
    "hd95_mm": "HD95, mm",
    "mssd_mm": "MSSD, mm",
    "surface_dice_2mm": "surface Dice at 2 mm",
    "volume_ml": "predicted volume, ml",
    "reference_volume_ml": "reference volume, ml",
}
COLUMNS: Mapping[str, tuple[str, str, int]] = {
    "liver Dice": ("liver", "dice", 3),
    "without tumours": ("liver_only", "dice", 3),
    "tumour Dice": ("tumour", "dice", 3),
    "liver HD95 mm": ("liver", "hd95_mm", 1),
    "tumour HD95 mm": ("tumour", "hd95_mm", 1),
    "liver ASSD mm": ("liver", "assd_mm", 2),
    "liver ml": ("liver", "volume_ml", 0),
    "true liver ml": ("liver", "reference_volume_ml", 0),
    "tumour ml": ("tumour", "volume_ml", 1),
    "true tumour ml": ("tumour", "reference_volume_ml", 1),
}
"""Of every case: heading → class group, measure, digits."""
FOUND, FALSE = "lesions found", "false lesions"


def against_others(title: str, results: Results, rival: Rival | None) -> Iterator[str]:
    """Mean Dice beside the champion's on the same cases and what others published on other cases."""
    groups = GROUP_NAMES.values()
    yield from _open(["model", *(f"{name}" for name in groups), "cases"])
    yield _line(f"<b>{escape(title)}</b>", *_dice(results.scores), _n(results.scores))
    if rival:
        yield _line(escape(rival.name), *_dice(rival.scores), f"{_n(rival.scores)}, the same")
        yield _line("difference, case by case", *_differences(results.scores, rival.scores), "both have")
    for one in PUBLISHED:
        link = f'<a href="{one.url}" rel="noreferrer">{one.source}</a>' if one.url else one.source
        name = f'{one.name} <span class="faint">({link})</span>'
        yield _line(name, one.liver, one.liver_only, one.tumour, one.on, kind="published")
    yield f'</tbody></table></div><p class="faint">{CAVEAT}</p>'
    yield '<p class="faint">In brackets: 95 % bootstrap intervals over cases. A case in which neither has a '
    yield "tumour has no tumour Dice and is left out.</p>"


def measures_table(summary: Mapping[str, Any]) -> Iterator[str]:
    """Mean, median, standard deviation and number of cases of every measure of every class group."""
    yield from _open(["measure", "mean", "median", "standard deviation", "cases"])
    for group, title in GROUP_NAMES.items():
        found = summary[group]
        yield f'<tr><th colspan="5" scope="colgroup">{title}</th></tr>'
        for policy, name in POLICY_NAMES.items():
            yield _spread(name, found["policies"][policy], 3)
        for measure in MEASURES:
            if not measure.startswith("dice"):
                digits = 1 if measure.endswith("_ml") else 2 if measure.endswith("mm") else 3
                yield _spread(MEASURE_NAMES[measure], found["spread"][measure], digits)
    burden = summary["burden"]
    yield '<tr><th colspan="5" scope="colgroup">tumour burden, tumour ÷ liver with tumours</th></tr>'
    yield _line("root mean square error", number(burden["rmse"], 4), "", "", str(burden["n"]))
    yield _line("largest error", number(burden["max_error"], 4), "", "", str(burden["n"]))
    yield "</tbody></table></div>"


def lesion_table(lesions: Mapping[str, Any]) -> Iterator[str]:
    """Lesions found and invented, by size, under both criteria."""
    yield from _open(
        ["diameter", "reference", "found", "recall", "predicted", "of them right", "precision", "F1"]
    )
    for criterion in CRITERIA:
        yield f'<tr><th colspan="8" scope="colgroup">found at {CRITERION_NAMES[criterion]}</th></tr>'
        for size, name in SIZE_NAMES.items():
            one = lesions[criterion][size]
            yield _line(
                name,
                *(str(one["reference"]), str(one["detected"]), number(one["recall"])),
                *(str(one["prediction"]), str(one["correct"]), number(one["precision"]), number(one["f1"])),
            )
    matched = lesions["matched"]
    yield "</tbody></table></div>"
    if matched["n"]:
        yield f'<p class="faint">The {matched["n"]} matches at {CRITERION_NAMES["iou_50"]}: mean Dice '
        yield f"{number(matched['dice'])}, RVD {number(matched['rvd'])}, "
        yield f"ASSD {number(matched['assd_mm'], 2)} mm.</p>"


def case_table(scores: Scores, links: Mapping[str, str]) -> Iterator[str]:
    """Every case, sortable; what leads to its picture or view is HTML in `links`."""
    yield f'<div class="wide">{head(["case", *COLUMNS, FOUND, FALSE], [*COLUMNS, FOUND, FALSE])}<tbody>'
    for case in scores:
        lesions = case["lesions"]["iou_50"]["all"]
        name = case["case"]
        yield f"<tr>{cell('case', name, links.get(name, escape(name)), False)}"
        for heading, (group, measure, digits) in COLUMNS.items():
            value = case[group][measure]
            yield cell(heading, "" if value is None else repr(value), number(value, digits), True)
        found = f"{lesions['detected']} of {lesions['reference']}" if lesions["reference"] else ""
        share = "" if lesions["recall"] is None else repr(lesions["recall"])
        false = lesions["prediction"] - lesions["correct"]
        yield f"{cell(FOUND, share, found, True)}{cell(FALSE, str(false), str(false), True)}</tr>"
    yield "</tbody></table></div>"


def _open(names: Sequence[str]) -> Iterator[str]:
    heads = "".join(
        f'<th scope="col"{"" if at == 0 else NUMBER}>{escape(name)}</th>' for at, name in enumerate(names)
    )
    yield f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>'


NUMBER = ' class="number"'


def _line(name: str, *values: str, kind: str = "") -> str:
    cells = "".join(f"<td{NUMBER}>{value}</td>" for value in values)
    return f'<tr{f" class={kind}" if kind else ""}><th scope="row">{name}</th>{cells}</tr>'


def _spread(name: str, found: Mapping[str, Any], digits: int) -> str:
    values = (number(found.get(part), digits) for part in ("mean", "median", "sd"))
    return _line(name, *values, str(found["n"]))


def _dice(scores: Scores) -> Iterable[str]:
    return map(with_interval, headline(scores).values())


def _differences(ours: Scores, theirs: Scores) -> Iterator[str]:
    for group in GROUP_NAMES:
        found = compare(*(scores_of(scores, group, "dice") for scores in (ours, theirs)))
        shown = with_interval({"mean": found.mean, "low": found.low, "high": found.high})
        yield f"+{shown}" if found.mean is not None and found.mean > 0 else shown


def _n(scores: Collection[Any]) -> str:
    return str(len(scores))
