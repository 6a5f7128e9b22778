"""The report's tables: against others, all measures, lesions, every case."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from liverseg_core.evaluation.comparison import compare, scores_of
from liverseg_core.evaluation.glossary import CRITERION_NAMES, LESIONS, term
from liverseg_core.evaluation.lesions import CRITERIA, PRIMARY
from liverseg_core.page import cell, head
from liverseg_core.report.detection import SIZE_NAMES
from liverseg_core.report.results import (
    CAVEAT,
    NAMES,
    POLICY_NAMES,
    PUBLISHED,
    Results,
    Scores,
    mean_dice,
    number,
    with_interval,
)
from liverseg_core.report.sources import INTERVALS, Rival

COLUMNS: Mapping[str, tuple[str, str, int]] = {
    "liver Dice": ("liver", "dice", 3),
    "without tumours": ("liver_only", "dice", 3),
    "tumour Dice": ("tumour", "dice", 3),
    "liver HD95 mm": ("liver", "hd95_mm", 1),
    "tumour HD95 mm": ("tumour", "hd95_mm", 1),
    "liver ASSD mm": ("liver", "assd_mm", 2),
    "liver ml": ("liver", "volume_ml", 0),
    "reference liver ml": ("liver", "reference_volume_ml", 0),
    "tumour ml": ("tumour", "volume_ml", 1),
    "reference tumour ml": ("tumour", "reference_volume_ml", 1),
}
"""Of every case: heading → class group, measure, digits."""
DECIDING = "tumour, empty = 1"
"""What the promotion of a version counts of tumours, as `tasks.registry.promotion.COMPARED` has it."""
COMPARED = (*((group, "dice") for group in NAMES), ("tumour", "dice_lits"))
"""Columns of the table against others: class group, measure."""
NUMBER = ' class="number"'
FOUND, FALSE = (LESIONS[name].label for name in ("found", "false"))


def against_others(title: str, results: Results, rival: Rival | None) -> Iterator[str]:
    """Mean Dice beside the champion's on the same cases and what others published on other cases."""
    names = ["model", *NAMES.values(), DECIDING, "cases"]
    yield from _open(names, "cards")
    yield _card(names, f"<b>{escape(title)}</b>", *_means(results.scores), str(len(results.scores)))
    if rival:
        name = f'{escape(rival.name)} <span class="faint">(compared with to be promoted)</span>'
        yield _card(names, name, *_means(rival.scores), f"{len(rival.scores)}, the same")
        yield _card(names, "difference, case by case", *_differences(results.scores, rival.scores), "")
    for one in PUBLISHED:
        link = f'<a href="{one.url}" rel="noreferrer">{one.source}</a>' if one.url else one.source
        name = f'{one.name} <span class="faint">({link})</span>'
        yield _card(names, name, one.liver, one.liver_only, one.tumour, "", one.on, kind="published")
    yield f'</tbody></table></div><p class="faint">{CAVEAT}</p>'
    yield f'<p class="faint">{INTERVALS} A case in which neither has a tumour has no tumour Dice and is left '
    yield f"out; “{DECIDING}” counts it as 1, and any tumour invented as 0. Promotion compares that and "
    yield f"{NAMES['liver']}.</p>"


def measures_table(summary: Mapping[str, Any]) -> Iterator[str]:
    """Mean, median, standard deviation and number of cases of every measure of every class group."""
    yield from _open(["measure", "mean", "median", "sd", "cases"])
    for group, title in NAMES.items():
        found = summary[group]
        yield f'<tr><th colspan="5" scope="colgroup">{title}</th></tr>'
        for policy, name in POLICY_NAMES.items():
            yield _spread(name, found["policies"][policy], 3)
        for measure, values in found["spread"].items():
            if not measure.startswith("dice"):
                yield _spread(term(measure).line, values, term(measure).digits)
    burden = summary["burden"]
    yield '<tr><th colspan="5" scope="colgroup">tumour burden, tumour ÷ liver with tumours</th></tr>'
    yield _line("root mean square error", number(burden["rmse"], 4), "", "", str(burden["n"]))
    yield _line("largest error", number(burden["max_error"], 4), "", "", str(burden["n"]))
    yield "</tbody></table></div>"


def lesion_table(lesions: Mapping[str, Any]) -> Iterator[str]:
    """Lesions found and invented, by size, under both criteria."""
    yield from _open(
        ["diameter", "reference", "of them", "recall", "predicted", "of them", "precision", "F1"]
    )
    for criterion in CRITERIA:
        told = f"{'found' if criterion == PRIMARY else 'touched'}: {CRITERION_NAMES[criterion]}"
        yield f'<tr><th colspan="8" scope="colgroup">{escape(told)}</th></tr>'
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
        yield f'<p class="faint">The {matched["n"]} matches, {escape(CRITERION_NAMES[PRIMARY])}: mean Dice '
        yield f"{number(matched['dice'])}, RVD {number(matched['rvd'])}, "
        yield f"ASSD {number(matched['assd_mm'], 2)} mm.</p>"


def case_table(scores: Scores, links: Mapping[str, str]) -> Iterator[str]:
    """Every case, sortable; what leads to its picture or view is HTML in `links`."""
    yield f'<div class="wide">{head(["case", *COLUMNS, FOUND, FALSE], [*COLUMNS, FOUND, FALSE])}<tbody>'
    for case in scores:
        lesions = case["lesions"][PRIMARY]["all"]
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


def _open(names: Sequence[str], kind: str = "") -> Iterator[str]:
    heads = (f'<th scope="col"{NUMBER if at else ""}>{escape(name)}</th>' for at, name in enumerate(names))
    yield f'<div class="wide"><table class="{kind}"><thead><tr>{"".join(heads)}</tr></thead><tbody>'


def _line(name: str, *values: str) -> str:
    cells = "".join(f"<td{NUMBER}>{value}</td>" for value in values)
    return f'<tr><th scope="row">{name}</th>{cells}</tr>'


def _card(names: Sequence[str], *values: str, kind: str = "ours") -> str:
    """A line that a phone shows as a card."""
    cells = (
        cell(name, "", value, at > 0) for at, (name, value) in enumerate(zip(names, values, strict=False))
    )
    return f'<tr class="{kind}">{"".join(cells)}</tr>'


def _spread(name: str, found: Mapping[str, Any], digits: int) -> str:
    values = (number(found.get(part), digits) for part in ("mean", "median", "sd"))
    return _line(name, *values, str(found["n"]))


def _means(scores: Scores) -> Iterable[str]:
    return (with_interval(mean_dice(scores, *what)) for what in COMPARED)


def _differences(ours: Scores, theirs: Scores) -> Iterator[str]:
    for what in COMPARED:
        found = compare(*(scores_of(scores, *what) for scores in (ours, theirs)))
        yield with_interval(found, 4, sign=True)  # as the verdict has them
