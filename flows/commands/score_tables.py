"""Scores in a terminal: a row a case, and for the set overlap and surfaces, and lesions by size.

What columns are called is what docs/measures.md explains.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from flows.console import plain_table
from liverseg_core.evaluation import glossary
from liverseg_core.evaluation.glossary import LESIONS, term
from liverseg_core.evaluation.lesions import CRITERIA, PRIMARY
from liverseg_core.words import counted

CLASSES = tuple(group.name for group in glossary.GROUPS)
SIZE_NAMES = {
    "all": "all",
    "below_10_mm": "below 10 mm",
    "from_10_to_20_mm": "10 to 20 mm",
    "from_20_mm": "20 mm and more",
}


def case_scores(cases: Sequence[Mapping[str, Any]]) -> Table:
    """Dice by class, surface distances, and lesions found, for every case."""
    hd95 = term("hd95_mm")
    headings = (
        *("case", *(f"{group} {glossary.DICE['nan'].label}" for group in CLASSES)),
        *(f"{group} {hd95.title}" for group in ("liver", "tumour")),
        *(LESIONS[name].label for name in ("found", "false")),
    )
    rows = []
    for case in cases:
        lesions = case["lesions"][PRIMARY]["all"]
        rows.append(
            [
                case["case"],
                *(_number(case[group]["dice"], 3) for group in CLASSES),
                *(_number(case[group]["hd95_mm"], 1) for group in ("liver", "tumour")),
                f"{lesions['detected']} of {lesions['reference']}",
                lesions["prediction"] - lesions["correct"],
            ]
        )
    return plain_table(headings, rows)


def surface_table(summary: Mapping[str, Any]) -> Table:
    """Means over the cases that define a measure."""
    columns = [term(name) for name in summary["liver"]["spread"] if not name.startswith("dice")]
    rows = [
        [
            group,
            *(_number(summary[group][one.name], one.digits) for one in columns),
            summary[group]["spread"]["assd_mm"]["n"],
        ]
        for group in CLASSES
    ]
    table = plain_table(("", *(one.title for one in columns), "n"), rows)
    rvd = term("rvd")
    table.title = f"Means over cases, surfaces over n; {rvd.label} {rvd.hint}"
    table.title_justify = "left"
    return table


def lesion_table(summary: Mapping[str, Any]) -> Table:
    """Lesions of all cases by size, and the errors of tumour burden."""
    found, touched = (summary["lesions"][criterion] for criterion in CRITERIA)
    rows = [
        [
            name,
            f"{found[size]['detected']} of {found[size]['reference']}",
            _number(found[size]["recall"], 3),
            f"{found[size]['correct']} of {found[size]['prediction']}",
            *(_number(found[size][rate], 3) for rate in ("precision", "f1")),
            f"{touched[size]['detected']} of {touched[size]['reference']}",
        ]
        for size, name in SIZE_NAMES.items()
    ]
    headings = ("diameter", "found", "recall", "right", "precision", "F1", "touched")
    table = plain_table(headings, rows)
    criteria = (glossary.CRITERION_NAMES[criterion] for criterion in CRITERIA)
    table.title = "Lesions of all cases; found, right: {}; touched: {}".format(*criteria)
    table.title_justify = "left"
    table.caption, table.caption_justify = f"{_matched(summary)}\n{_burden(summary)}", "left"
    return table


def _matched(summary: Mapping[str, Any]) -> str:
    found = summary["lesions"]["matched"]
    dice, rvd, assd = (_number(found[name], 3) for name in ("dice", "rvd", "assd_mm"))
    return f"Matches of found ones, means of {found['n']}: Dice {dice}, RVD {rvd}, ASSD {assd} mm"


def _burden(summary: Mapping[str, Any]) -> str:
    found = summary["burden"]
    cases = counted(found["n"], "case")
    rmse, largest = (_number(found[name], 4) for name in ("rmse", "max_error"))
    return f"Tumour burden (tumour / liver): RMSE {rmse}, largest error {largest}, {cases}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
