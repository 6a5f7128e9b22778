"""The data report as one page: no request to anywhere, sortable, readable on a phone and on paper."""

import base64
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from liverseg_core.cases.data_report import HEADINGS, MEANING, CaseRow, cells

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
NUMBERS = {"shape", "spacing mm", "body HU", "liver ml", "tumour ml", "tumours"}

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b22; --faint: #62626e; --line: #dcdce4; --back: #fff;
  --soft: #f5f5f9; --flag: #8a5300; --flag-back: #fff1d6; --bad: #a01622; --bad-back: #fde7e9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ec; --faint: #a2a2ae; --line: #35353f;
  --back: #121217; --soft: #1c1c23; --flag: #ffce7a; --flag-back: #3a2b10;
  --bad: #ff9aa3; --bad-back: #411a1f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 84rem; background: var(--back); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
p { margin: .2rem 0; } .faint { color: var(--faint); }
.counts { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0 0; padding: 0; list-style: none; }
.counts li { background: var(--soft); border: 1px solid var(--line); border-radius: .5rem;
  padding: .5rem .9rem; }
.counts b { display: block; font-size: 1.35rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem .8rem; margin: 0;
  align-items: baseline; }
dd { margin: 0; }
.flag, .problem { border-radius: .3rem; padding: 0 .4rem; white-space: nowrap; display: inline-block; }
.flag { color: var(--flag); background: var(--flag-back); }
.problem { color: var(--bad); background: var(--bad-back); white-space: normal; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th { position: sticky; top: 0; background: var(--back); white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
th button { all: unset; cursor: pointer; font-weight: 600; } th button:focus-visible { outline: 2px solid; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
.only-flagged tr.sound { display: none; }
label { display: inline-block; margin: 0 0 .6rem; }
figure { margin: 0 0 1.6rem; break-inside: avoid; }
figure img { width: 100%; height: auto; border-radius: .4rem; margin-top: .5rem; display: block;
  background: #101014; }
@media (max-width: 46rem) {
  body { padding: 1rem; } dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .6rem; }
  table, tbody, tr, td { display: block; } thead tr { display: flex; flex-wrap: wrap; gap: .4rem; }
  thead { display: block; margin-bottom: .6rem; } thead::before { content: "Sort by"; color: var(--faint); }
  th { position: static; border: 1px solid var(--line);
    border-radius: 1rem; padding: .3rem .8rem; }
  tr.sound, tr.odd { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .8rem;
    margin-bottom: .6rem; }
  td, td.number { border: 0; padding: .08rem 0; text-align: right; display: flex;
    justify-content: space-between; gap: 1rem; flex-wrap: wrap; white-space: normal; }
  td:empty { display: none; } td.reason { display: block; text-align: left; }
  td::before { content: attr(data-name); color: var(--faint); }
  td.reason::before { content: none; }
  td:first-child { font-weight: 600; font-size: 1.05rem; } td:first-child::before { content: none; }
  .scroll { overflow-x: auto; } .scroll img { width: 62rem; max-width: none; }
}
@media print { :root { color-scheme: light; --ink: #000; --faint: #444; --line: #bbb;
    --back: #fff; --soft: #fff; --flag: #000; --flag-back: #fff; --bad: #000; --bad-back: #fff; }
  @page { size: A4 landscape; margin: 12mm; } body { padding: 0; font-size: 9.5pt; } label { display: none; }
  .flag, .problem { border: 1px solid #888; } tr { break-inside: avoid; } th { position: static; }
  h2 { break-after: avoid; } }
"""

SCRIPT = """
const table = document.querySelector("table"), body = table.tBodies[0];
for (const [at, head] of [...table.tHead.rows[0].cells].entries()) {
  head.querySelector("button").onclick = () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => row.cells[at]?.dataset.key ?? "";
    const order = (a, b) => key(a) === "" ? 1 : key(b) === "" ? -1
      : (up ? 1 : -1) * key(a).localeCompare(key(b), "en", { numeric: true });
    const number = (a, b) => key(a) === "" ? 1 : key(b) === "" ? -1 : (up ? 1 : -1) * (key(a) - key(b));
    body.append(...[...body.rows].sort(head.classList.contains("number") ? number : order));
  };
}
const only = document.querySelector("input");
only.onchange = () => table.classList.toggle("only-flagged", only.checked);
"""


def data_page(title: str, about: str, rows: Sequence[CaseRow], pictures: Mapping[str, bytes]) -> str:
    """The whole page as HTML; every text is escaped, since names come from other people's files.

    Args:
        title: The dataset's name.
        about: A line below it: where the dataset lies.
        rows: From `liverseg_core.cases.data_report.describe`.
        pictures: Case → PNG, for the flagged ones.
    """
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            f"<title>{escape(title)}: data report</title><style>{STYLE}</style></head><body>",
            f'<h1>{escape(title)}</h1><p class="faint">Data report of {escape(about)}</p>',
            *_counts(rows),
            *_flags(rows),
            *_table(rows),
            *_gallery(rows, pictures),
            f"<script>{SCRIPT}</script></body></html>",
            "",
        ]
    )


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


def _table(rows: Sequence[CaseRow]) -> Iterator[str]:
    yield '<h2>Cases</h2><label><input type="checkbox"> only flagged and unusable ones</label>'
    yield "<table><thead><tr>"
    for name in HEADINGS:
        yield f'<th scope="col"{_class(name)}><button type="button">{name}</button></th>'
    yield "</tr></thead><tbody>"
    for row in rows:
        yield f'<tr class="{"odd" if row.flags or row.problem else "sound"}">'
        named = [*zip(HEADINGS, cells(row), strict=False)]  # cells has the problem, too
        for name, text in named[:1] if row.problem else named:
            key, shown = escape(_key(row, name, text)), _shown(row, name, text)
            yield f'<td{_class(name)} data-name="{name}" data-key="{key}">{shown}</td>'
        if row.problem:  # over the columns of what is not known
            reason = f'<span class="problem">{escape(row.problem)}</span>'
            yield f'<td class="reason" colspan="{len(HEADINGS) - 1}">{reason}</td>'
        yield "</tr>"
    yield "</tbody></table>"


def _shown(row: CaseRow, name: str, text: str) -> str:
    if name == "flags":
        others = f" {escape(', '.join(row.same_voxels_as))}" if row.same_voxels_as else ""
        return f"<span>{' '.join(map(_chip, row.flags))}{others}</span>" if row.flags else ""
    if name == "case" and row.flags:
        return f'<a href="#{escape(text)}">{escape(text)}</a>'
    return escape(text)


def _key(row: CaseRow, name: str, text: str) -> str:
    """What a column is sorted by."""
    keys = {
        "shape": row.shape and math.prod(row.shape),
        "spacing mm": row.spacing_mm and max(row.spacing_mm),
        "body HU": row.body_hu and row.body_hu["p50"],
        "liver ml": row.liver_ml,
        "tumour ml": row.tumour_ml,
    }
    key = keys.get(name, text)
    return "" if key is None else str(key)


def _gallery(rows: Sequence[CaseRow], pictures: Mapping[str, bytes]) -> Iterator[str]:
    flagged = [row for row in rows if row.flags]
    if flagged:
        yield "<h2>Flagged cases</h2>"
    for row in flagged:
        measures = zip(HEADINGS[1:-1], cells(row)[1:-2], strict=True)
        facts = " · ".join(f"{name} {escape(text)}" for name, text in measures if text)
        yield f'<figure id="{escape(row.case)}"><h3>{escape(row.case)}</h3>'
        yield f'<p>{_shown(row, "flags", "")}</p><p class="faint">{facts}</p>'
        if row.case in pictures:
            data = base64.b64encode(pictures[row.case]).decode()
            alt = f"{row.case} in an axial, a coronal and a sagittal plane"
            yield f'<div class="scroll"><img alt="{escape(alt)}" src="data:image/png;base64,{data}"></div>'
        yield "</figure>"


def _chip(flag: str) -> str:
    return f'<span class="flag" title="{escape(MEANING.get(flag, ""))}">{escape(flag)}</span>'


def _class(name: str) -> str:
    return ' class="number"' if name in NUMBERS else ""
