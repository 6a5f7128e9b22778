"""Scores in a terminal: a row a case, and for the set overlap and surfaces, and lesions by size."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from flows.console import plain_table
from liverseg_core.words import counted

CLASSES = ("liver", "liver_only", "tumour")
SIZE_NAMES = {
    "all": "all",
    "below_10_mm": "below 10 mm",
    "from_10_to_20_mm": "10 to 20 mm",
    "from_20_mm": "20 mm and more",
}


def case_scores(cases: Sequence[Mapping[str, Any]]) -> Table:
    """Dice by class, surface distances, and lesions found, for every case."""
    headings = ("case", *CLASSES, "liver HD95 mm", "tumour HD95 mm", "lesions found", "false lesions")
    rows = []
    for case in cases:
        found = case["lesions"]["iou_50"]["all"]
        rows.append(
            [
                case["case"],
                *(_number(case[group]["dice"], 3) for group in CLASSES),
                *(_number(case[group]["hd95_mm"], 1) for group in ("liver", "tumour")),
                f"{found['detected']} of {found['reference']}",
                found["prediction"] - found["correct"],
            ]
        )
    return plain_table(headings, rows)


def surface_table(summary: Mapping[str, Any]) -> Table:
    """Means over the cases that define a measure."""
    columns = {
        "VOE": ("voe", 3),
        "RVD": ("rvd", 3),
        "ASSD mm": ("assd_mm", 2),
        "HD95 mm": ("hd95_mm", 1),
        "MSSD mm": ("mssd_mm", 1),
        "surface Dice 2 mm": ("surface_dice_2mm", 3),
        "ml": ("volume_ml", 1),
        "ref. ml": ("reference_volume_ml", 1),
    }
    rows = [
        [
            group,
            *(_number(summary[group][measure], digits) for measure, digits in columns.values()),
            summary[group]["spread"]["assd_mm"]["n"],
        ]
        for group in CLASSES
    ]
    table = plain_table(("", *columns, "n"), rows)
    table.title, table.title_justify = (
        "Means over cases, surfaces over n; RVD above 0: too much is predicted",
        "left",
    )
    return table


def lesion_table(summary: Mapping[str, Any]) -> Table:
    """Lesions of all cases by size, and the errors of tumour burden."""
    matches, touches = (summary["lesions"][criterion] for criterion in ("iou_50", "iou_0"))
    rows = [
        [
            name,
            f"{matches[size]['detected']} of {matches[size]['reference']}",
            _number(matches[size]["recall"], 3),
            f"{matches[size]['correct']} of {matches[size]['prediction']}",
            *(_number(matches[size][rate], 3) for rate in ("precision", "f1")),
            *(_number(touches[size][rate], 3) for rate in ("recall", "precision")),
        ]
        for size, name in SIZE_NAMES.items()
    ]
    headings = (
        "diameter",
        "found",
        "recall",
        "right",
        "precision",
        "F1",
        "recall IoU > 0",
        "precision IoU > 0",
    )
    table = plain_table(headings, rows)
    table.title, table.title_justify = "Lesions of all cases, IoU > 0.5", "left"
    table.caption, table.caption_justify = f"{_matched(summary)}\n{_burden(summary)}", "left"
    return table


def _matched(summary: Mapping[str, Any]) -> str:
    found = summary["lesions"]["matched"]
    dice, rvd, assd = (_number(found[name], 3) for name in ("dice", "rvd", "assd_mm"))
    return f"Found ones, means of {found['n']}: Dice {dice}, RVD {rvd}, ASSD {assd} mm"


def _burden(summary: Mapping[str, Any]) -> str:
    found = summary["burden"]
    cases = counted(found["n"], "case")
    rmse, largest = (_number(found[name], 4) for name in ("rmse", "max_error"))
    return f"Tumour burden (tumour / liver): RMSE {rmse}, largest error {largest}, {cases}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
