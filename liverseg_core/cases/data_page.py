"""The data report as one page: no request to anywhere, sortable, readable on a phone and on paper."""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from html import escape

from liverseg_core.cases.data_report import (
    BODY_COLUMN,
    BODY_MEANING,
    HEADINGS,
    MEANING,
    CaseRow,
    cells,
)
from liverseg_core.page import cell, data_url, head, html_page

NUMBERS = {"shape", "spacing mm", BODY_COLUMN, "liver ml", "tumour ml", "tumours"}


def data_page(title: str, about: str, rows: Sequence[CaseRow], pictures: Mapping[str, bytes]) -> str:
    """The whole page as HTML; every text is escaped, since names come from other people's files.

    Args:
        title: The dataset's name.
        about: A line below it: where the dataset lies.
        rows: From `liverseg_core.cases.data_report.describe`.
        pictures: Case → PNG, for the flagged ones.
    """
    flagged = [row for row in rows if row.flags]
    body = [
        f'<h1>{escape(title)}</h1><p class="faint">Data report of {escape(about)}</p>',
        *data_overview(rows),
        "<h2>Cases</h2>",
        *data_table(rows, linked={row.case for row in flagged}),
        *_gallery(flagged, pictures),
    ]
    return html_page(f"{title}: data report", body)


def data_overview(rows: Sequence[CaseRow]) -> Iterator[str]:
    """How many cases there are of each kind, and what their flags mean."""
    yield from _counts(rows)
    yield from _flags(rows)


def _counts(rows: Sequence[CaseRow]) -> Iterator[str]:
    counts = {
        "cases": len(rows),
        "with a label": sum(bool(row.labelled) for row in rows),
        "with tumours": sum(bool(row.tumours) for row in rows),
        "flagged": sum(bool(row.flags) for row in rows),
        "unusable": sum(row.problem is not None for row in rows),
    }
    items = (f"<li><b>{count}</b>{name}</li>" for name, count in counts.items())
    yield f'<ul class="counts">{"".join(items)}</ul>'


def _flags(rows: Sequence[CaseRow]) -> Iterator[str]:
    counts = Counter(flag for row in rows for flag in row.flags)
    if counts:
        yield "<h2>Flags</h2><dl>"
        for flag, meaning in MEANING.items():
            if counts[flag]:
                yield f"<dt>{_chip(flag)} {counts[flag]}×</dt><dd>{escape(meaning)}</dd>"
        yield '</dl><p class="faint">A flag says: look at this case. It leaves none out.</p>'


def data_table(rows: Sequence[CaseRow], linked: Collection[str] = ()) -> Iterator[str]:
    """A line for each case, from which those that are `linked` lead to their picture."""
    yield '<div><input type="checkbox" class="narrow" id="only-flagged">'
    yield '<label for="only-flagged">only flagged and unusable ones</label>'
    yield f"{head(HEADINGS, NUMBERS)}<tbody>"
    for row in rows:
        yield f'<tr class="{"odd" if row.flags or row.problem else "sound"}">'
        named = [*zip(HEADINGS, cells(row), strict=False)]  # cells has the problem, too
        for name, text in named[:1] if row.problem else named:
            shown = _shown(row, name, text, row.case in linked)
            yield cell(name, _key(row, name, text), shown, name in NUMBERS)
        if row.problem:  # over the columns of what is not known
            reason = f'<span class="problem">{escape(row.problem)}</span>'
            yield f'<td class="reason" colspan="{len(HEADINGS) - 1}">{reason}</td>'
        yield "</tr>"
    yield f'</tbody></table></div><p class="faint">{BODY_MEANING}</p>'


def _shown(row: CaseRow, name: str, text: str, linked: bool) -> str:
    if name == "flags":
        others = f" {escape(', '.join(row.same_voxels_as))}" if row.same_voxels_as else ""
        return f"<span>{' '.join(map(_chip, row.flags))}{others}</span>" if row.flags else ""
    if name == "case" and linked:
        return f'<a href="#{escape(text)}">{escape(text)}</a>'
    return escape(text)


def _key(row: CaseRow, name: str, text: str) -> str:
    """What a column is sorted by."""
    keys = {
        "shape": row.shape and math.prod(row.shape),
        "spacing mm": row.spacing_mm and max(row.spacing_mm),
        BODY_COLUMN: row.body_hu and row.body_hu["p50"],
        "liver ml": row.liver_ml,
        "tumour ml": row.tumour_ml,
    }
    key = keys.get(name, text)
    return "" if key is None else str(key)


def _gallery(flagged: Sequence[CaseRow], pictures: Mapping[str, bytes]) -> Iterator[str]:
    if flagged:
        yield "<h2>Flagged cases</h2>"
    for row in flagged:
        measures = zip(HEADINGS[1:-1], cells(row)[1:-2], strict=True)
        facts = " · ".join(f"{name} {escape(text)}" for name, text in measures if text)
        yield f'<figure id="{escape(row.case)}"><h3>{escape(row.case)}</h3>'
        yield f'<p>{_shown(row, "flags", "", False)}</p><p class="faint">{facts}</p>'
        if row.case in pictures:
            alt = f"{row.case} in an axial, a coronal and a sagittal plane"
            source = data_url(pictures[row.case], "image/png")
            yield f'<div class="scroll"><img alt="{escape(alt)}" src="{source}"></div>'
        yield "</figure>"


def _chip(flag: str) -> str:
    return f'<span class="flag" title="{escape(MEANING.get(flag, ""))}">{escape(flag)}</span>'
