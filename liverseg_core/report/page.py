"""The report as one page: figures, plots, cases to look at, and where it all came from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from liverseg_core.cases.data_page import data_overview, data_table
from liverseg_core.evaluation.glossary import LESIONS
from liverseg_core.evaluation.lesions import PRIMARY
from liverseg_core.page import data_url, html_page
from liverseg_core.report import svg
from liverseg_core.report.caveats import volume_caveats
from liverseg_core.report.plots import lesions_plot, measures_plot, paired_plot, volumes_plot
from liverseg_core.report.results import NAMES, NO_DEVICE, PHANTOM, Results, mean_dice, number, web_links
from liverseg_core.report.sources import WRITTEN, ReportSources
from liverseg_core.report.tables import against_others, case_table, lesion_table, measures_table
from liverseg_core.report.viewer import ASSETS, Packed, viewer_html

STYLE = Path(__file__).with_name("report.css")
CAVEATS = "volumes"


@dataclass
class Shown:
    """What of single cases is inside the page."""

    curves: bytes | None
    """WebP of the learning curves."""
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    """Case → WebP, worst first."""
    films: Mapping[str, bytes] = field(default_factory=dict)
    """Case → MP4."""
    posters: Mapping[str, bytes] = field(default_factory=dict)
    """Case → WebP of what its film shows before it runs."""
    beside: Sequence[str] = ()
    """Cases whose films are only beside the page."""
    cases: Sequence[Packed] = ()
    """For the viewer."""


def report_page(sources: ReportSources, results: Results, shown: Shown) -> str:
    """The whole page as HTML; every text is escaped, since names come from other people's files."""
    caveats = [f'<p class="caveat">{escape(told)}</p>' for told in volume_caveats(sources)]
    see = f'<p class="caveat">Volumes: <a href="#{CAVEATS}">what to keep in mind of them</a></p>'
    volumes = [see] * bool(caveats)
    sections = {
        "Against others": against_others(sources.title, results, sources.champion),
        "Plots": [*_plots(sources, results), *volumes],
        "Look inside": _viewer(shown),
        "Lowest Dice": _pictures(shown),
        "Films": _films(shown),
        "Lesions": lesion_table(results.summary["lesions"]),
        "All measures": [*measures_table(results.summary), f'<div id="{CAVEATS}">', *caveats, "</div>"],
        "Every case": [*case_table(results.scores, _links(shown)), *volumes],
        "Training": _training(sources, shown),
        "Data": _data(sources),
        "How it was made": _origin(sources),
    }
    written = {name: "\n".join(body) for name, body in sections.items()}
    written = {name: body for name, body in written.items() if body}
    body = [*_top(sources, results, list(written))]
    for name, text in written.items():
        body.append(f'<section id="{_anchor(name)}"><h2>{name}</h2>\n{text}\n</section>')
    body.append(f'<footer class="faint">{NO_DEVICE}</footer>')
    return html_page(f"{sources.title}: report", body, STYLE, *(ASSETS if shown.cases else ()))


def _top(sources: ReportSources, results: Results, names: Sequence[str]) -> Iterator[str]:
    counts = f"{svg.cases(len(sources.training))} to train on, {len(results.scores)} to validate"
    yield f"<header><h1>{escape(sources.title)}</h1>"
    written = sources.provenance.get(WRITTEN)
    when = f" Written {escape(written)}." if written else ""
    yield f'<p class="faint">Report on {escape(sources.dataset)}: {counts}.{when} {NO_DEVICE}</p>'
    if sources.phantom:
        yield f'<p class="phantom" role="note">{PHANTOM}</p>'
    yield '<ul class="counts">'
    for group in ("liver", "tumour"):
        found = mean_dice(results.scores, group)
        what = f"{'phantom ' if sources.phantom else ''}mean Dice, {NAMES[group]}"
        between = f"{number(found.low)} to {number(found.high)}, " if found.low is not None else ""
        yield f"<li><b>{number(found.mean) or 'none'}</b>{what}"
        yield f'<br><span class="faint">{between}n = {len(found.differences)}</span></li>'
    lesions = results.summary["lesions"][PRIMARY]["all"]
    if lesions["reference"]:
        yield f"<li><b>{lesions['detected']} of {lesions['reference']}</b>{escape(LESIONS['found'].label)}"
        yield f'<br><span class="faint">{lesions["prediction"] - lesions["correct"]} of '
        yield f"{lesions['prediction']} predicted ones are false</span></li>"
    yield "</ul>"
    if sources.verdict:
        yield f'<p class="verdict">{escape(sources.verdict)}</p>'
    links = " ".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in names)
    yield f'<nav aria-label="Sections">{links}</nav></header>'


def _plots(sources: ReportSources, results: Results) -> Iterator[str]:
    scores, rival = results.scores, sources.champion
    drawings = [measures_plot(scores, rival), lesions_plot(scores), volumes_plot(scores)]
    if rival:
        drawings.append(paired_plot(scores, rival))
    yield f'<div class="drawings">{"".join(drawings)}</div>'


def _viewer(shown: Shown) -> Iterator[str]:
    if shown.cases:
        spacing = " × ".join(f"{mm:.2g}" for mm in shown.cases[0].spacing_mm)
        yield viewer_html(shown.cases)
        yield '<p class="faint">To look at, not to measure: all figures are of the scans\' own voxels; those '
        yield f"in the viewer are {spacing} mm in the first case.</p>"


def _pictures(shown: Shown) -> Iterator[str]:
    for at, (case, content) in enumerate(shown.pictures.items()):
        alt = escape(
            f"{case} in an axial, a coronal and a sagittal plane: prediction filled, reference outlined"
        )
        yield f'<figure id="picture-{at}"><h3>{escape(case)}</h3><div class="scroll">'
        yield f'<img alt="{alt}" src="{data_url(content, "image/webp")}"></div></figure>'


def _films(shown: Shown) -> Iterator[str]:
    for case, content in shown.films.items():
        source = data_url(content, "video/mp4")
        yield f"<figure><h3>{escape(case)}</h3>"
        poster = data_url(shown.posters[case], "image/webp")
        yield f'<video controls loop muted playsinline preload="none" poster="{poster}" src="{source}">'
        yield "</video></figure>"
    for case in shown.beside:
        yield f"<p>{escape(case)}: <code>films/{escape(case)}.mp4</code> beside this page</p>"


def _links(shown: Shown) -> dict[str, str]:
    """Case → its name, leading to where it can be seen."""
    pictures = {case: f'href="#picture-{at}"' for at, case in enumerate(shown.pictures)}
    views = {one.case: f'href="#viewer" data-view="{at}"' for at, one in enumerate(shown.cases)}
    return {case: f"<a {leads}>{escape(case)}</a>" for case, leads in (pictures | views).items()}


def _training(sources: ReportSources, shown: Shown) -> Iterator[str]:
    if shown.curves:
        alt = "Loss and Dice over the steps of the training"
        source = data_url(shown.curves, "image/webp")
        yield f'<figure class="scroll"><img alt="{alt}" src="{source}"></figure>'
        if sources.resumed_from:
            steps = ", ".join(map(str, sources.resumed_from))
            yield f'<p class="faint">Stopped, and went on from step {steps}.</p>'


def _data(sources: ReportSources) -> Iterator[str]:
    yield from data_overview(sources.data)
    yield f"<details><summary>All {len(sources.data)} cases</summary>"
    yield from data_table(sources.data)
    yield "</details>"


def _origin(sources: ReportSources) -> Iterator[str]:
    values = {
        name: f'<a href="{escape(url)}" rel="noreferrer">{escape(url)}</a>'
        for name, url in web_links(sources.links).items()
    }
    values |= {name: f"<code>{escape(value)}</code>" for name, value in sources.provenance.items()}
    terms = (f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in values.items())
    yield f"<dl>{''.join(terms)}</dl>"
    yield f"<details><summary>The recipe</summary><pre>{escape(sources.recipe)}</pre></details>"


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")
