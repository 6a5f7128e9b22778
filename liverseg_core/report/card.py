"""The model card: what a model is, what it was trained on, what was measured of it and what was not."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from liverseg_core.cases.data_report import CaseRow
from liverseg_core.evaluation.glossary import CRITERION_NAMES, term
from liverseg_core.evaluation.lesions import CRITERIA, PRIMARY
from liverseg_core.report import svg
from liverseg_core.report.caveats import volume_caveats
from liverseg_core.report.detection import SIZE_NAMES
from liverseg_core.report.results import (
    NAMES,
    NO_DEVICE,
    PHANTOM,
    POLICY_NAMES,
    Results,
    Scores,
    mean_dice,
    number,
    web_links,
    with_interval,
)
from liverseg_core.report.sources import INTERVALS, ReportSources

FEW = 30
"""Cases below which an interval by bootstrap is too narrow to be trusted much."""
REGISTERED = re.compile(r"(?P<name>\S+) version (?P<version>\d+)")
SPECIAL = re.compile(r"([\\`*_\[\]<>|&#~])")


def model_card(sources: ReportSources, results: Results) -> str:
    """The card as Markdown; names are escaped, since they come from other people's files."""
    spec = json.loads((sources.model / "model.json").read_text())
    sections: dict[str, Iterable[str]] = {
        "What it is": _what(spec),
        "What it was trained on": _data(sources),
        "What was measured": _measures(sources, results, spec),
        "Lesions": _lesions(results),
        "What was not measured, and other limits": _limits(sources, results),
        "What it is for": _purpose(),
        "How to use it": _usage(sources),
        "Where it came from": _origin(sources),
    }
    body = "\n\n".join(f"## {name}\n\n" + "\n".join(lines) for name, lines in sections.items())
    warning = f"\n>\n> {_plain(PHANTOM)}" if sources.phantom else ""
    return f"# {_escape(sources.title)}\n\n> {NO_DEVICE}{warning}\n\n{body}\n"


def _what(spec: Mapping[str, Any]) -> Iterator[str]:
    members = spec["members"]
    network = spec["network"]["name"]
    several = f"{members} networks ({network}), whose probabilities are averaged" if members > 1 else network
    spacing, (low, high) = spec["ingest"]["spacing_mm"], spec["window_hu"]
    grid = f"{' × '.join(f'{mm:g}' for mm in spacing)} mm" if spacing else "the scan's own spacing"
    patch = " × ".join(map(str, spec["patch_size"]))
    yield "It labels liver and liver tumours in CT of the abdomen: every voxel of a scan becomes background"
    yield "(0), liver (1) or tumour (2), on the scan's own grid."
    yield ""
    yield f"- Network: {several}; {spec['activation']} over background, liver, tumour"
    yield f"- Works at {grid}, in patches of {patch} voxels, on {number(low, 0)} to {number(high, 0)} HU"


def _data(sources: ReportSources) -> Iterator[str]:
    rows = {row.case: row for row in sources.data}
    trained = [rows[name] for name in sources.training if name in rows]
    kind = _cases(len(sources.training), sources) + (", no patients" if sources.phantom else "")
    yield f"- Dataset: {_escape(sources.dataset)}"
    shared = set(sources.training) & set(sources.validation)
    measured = len(sources.validation)
    others = f"{measured}{'' if shared else ' other' if measured == 1 else ' others'} of the same dataset"
    yield f"- Trained on {kind}; measured on {others}"
    if tumours := sum(bool(row.tumours) for row in trained):
        yield f"- Training cases with tumours: {tumours}"
    if spacings := [row.spacing_mm for row in trained if row.spacing_mm]:
        yield f"- Voxels of the training scans: {_span(map(min, spacings), 2)} mm at their finest,"
        yield f"  {_span(map(max, spacings), 2)} mm at their longest"
    flagged = sum(bool(row.flags) for row in sources.data)
    unusable = sum(row.problem is not None for row in sources.data)
    yield f"- Cases in the dataset: {len(sources.data)}; could not be used: {unusable}; flagged: {flagged}"


def _measures(sources: ReportSources, results: Results, spec: Mapping[str, Any]) -> Iterator[str]:
    what = _cases(len(results.scores), sources)
    yield f"On {what}, in each scan's own voxels against its own label. {INTERVALS}"
    yield "n: cases that define the measure."
    yield ""
    yield "| | mean Dice | n |\n|---|---|---|"
    for group, name in NAMES.items():
        found = mean_dice(results.scores, group)
        yield f"| {name} | {with_interval(found) or 'not defined'} | {len(found.differences)} |"
    yield ""
    yield "| | mean | median | n |\n|---|---|---|---|"
    for group in ("liver", "tumour"):
        summary = results.summary[group]
        for policy in ("lits", "pooled"):
            yield _row(f"{NAMES[group]}: {POLICY_NAMES[policy]}", summary["policies"][policy], 3)
        for measure, values in summary["spread"].items():
            if not measure.startswith("dice"):
                yield _row(f"{NAMES[group]}: {term(measure).line}", values, term(measure).digits)
    if told := volume_caveats(sources):
        yield "\nWhat to keep in mind of its volumes:\n"
        yield from (f"- {one}" for one in told)
    yield from _optimism(sources, spec)
    if sources.champion:
        yield f"\nCompared with {_escape(sources.champion.name)}. Verdict: {_escape(sources.verdict)}"
    elif sources.verdict:
        yield f"\nVerdict: {_escape(sources.verdict)}"


def _row(name: str, found: Mapping[str, Any], digits: int) -> str:
    mean, median = (number(found.get(part), digits) for part in ("mean", "median"))
    return f"| {name} | {mean} | {median} | {found['n']} |"


def _optimism(sources: ReportSources, spec: Mapping[str, Any]) -> Iterator[str]:
    """What was chosen on the very cases that it is measured on, as the recipe says."""
    recipe = yaml.safe_load(sources.recipe) or {}
    chosen = {
        "the steps at which training ended or whose weights became the model": (
            recipe.get("train", {}).get("choose") == "best" or recipe.get("train", {}).get("patience")
        ),
        "the rules that clean its labels": recipe.get("evaluate", {}).get("tune"),
    }
    named = [what for what, is_chosen in chosen.items() if is_chosen]
    if named:
        yield f"\nChosen on the same cases, which flatters the figures: {'; '.join(named)}."
    if spec["members"] > 1:
        yield "\nEach case was scored by the one member that had not trained on it. The members together, the"
        yield "model itself, have trained on every case and were not measured."


def _lesions(results: Results) -> Iterator[str]:
    yield "6-connected components; sizes are diameters of balls of equal volume."
    yield ""
    how, touching = (CRITERION_NAMES[criterion] for criterion in CRITERIA)
    columns = ("diameter", "in the reference", f"found ({how})", f"touched ({touching})")
    yield f"| {' | '.join(columns)} | predicted | of them false ({how}) |"
    yield "|---|---|---|---|---|---|"
    found, touched = (results.summary["lesions"][criterion] for criterion in CRITERIA)
    for size, name in SIZE_NAMES.items():
        one = found[size]
        yield (
            f"| {name} | {one['reference']} | {one['detected']} | {touched[size]['detected']} "
            f"| {one['prediction']} | {one['prediction'] - one['correct']} |"
        )


def _limits(sources: ReportSources, results: Results) -> Iterator[str]:
    if sources.phantom:
        yield "- No scan of a patient was measured. Nothing is known of how it does on one."
    yield "- Nothing was measured by scanner, contrast phase, age, sex or disease: the data does not say."
    yield "- Cases from elsewhere than this dataset were not measured."
    if len(results.scores) < FEW:
        few = svg.cases(len(results.scores))
        yield f"- {few}: so few that intervals are rough, and rare failures may be missing."
    yield from _without_tumours(results.scores)
    rows = [row for row in sources.data if row.case in sources.validation]
    yield from _range_measured(rows)
    small = results.summary["lesions"][PRIMARY]["below_10_mm"]
    if small["reference"]:
        told = f"it found {small['detected']} ({CRITERION_NAMES[PRIMARY]})"
        yield f"- Of {small['reference']} tumours below 10 mm {told}."
    else:
        yield "- No tumour below 10 mm was among the cases measured."


def _without_tumours(scores: Scores) -> Iterator[str]:
    free = [case for case in scores if not case["tumour"]["voxels"]["reference"]]
    if free:
        false = sum(case["tumour"]["voxels"]["prediction"] > 0 for case in free)
        yield f"- Cases measured without a tumour: {len(free)}; it invented one in {false} of them."
    else:
        yield "- No case without a tumour was measured, so false alarms in healthy livers were not."


def _range_measured(rows: list[CaseRow]) -> Iterator[str]:
    if spacings := [row.spacing_mm for row in rows if row.spacing_mm]:
        yield f"- Measured on voxels {_span(map(max, spacings), 2)} mm long; outside of that it was not."
    if volumes := [row.liver_ml for row in rows if row.liver_ml is not None]:
        yield f"- Measured on livers of {_span(volumes, 0)} ml; outside of that it was not."


def _cases(count: int, sources: ReportSources) -> str:
    return svg.cases(count).replace(" ", " computed phantom ") if sources.phantom else svg.cases(count)


def _purpose() -> Iterator[str]:
    yield f"Research on segmentation of liver and liver tumours in CT. {NO_DEVICE}"
    yield "Not for diagnosis, not for planning treatment; no label of it should be used before somebody"
    yield "competent has looked at it."


def _usage(sources: ReportSources) -> Iterator[str]:
    named = REGISTERED.fullmatch(sources.title)
    reference = f"models:/{named['name']}/{named['version']}" if named else "FOLDER"
    yield f"    liverseg predict SCAN.nii.gz --model {reference} -o OUT"
    yield ""
    yield "In Python, from the folder that holds `model.json`:"
    yield ""
    yield "    from liverseg_core.models.model import load_model"
    yield '    model = load_model(Path("FOLDER"))'


def _origin(sources: ReportSources) -> Iterator[str]:
    for name, value in sources.provenance.items():
        yield f"- {_escape(name)}: {_escape(value)}"
    for name, url in web_links(sources.links).items():
        yield f"- {_escape(name)}: <{url}>"
    yield "\nThe settings that made it:\n"
    yield from (f"    {line}" for line in sources.recipe.splitlines())


def _span(values: Iterable[float], digits: int) -> str:
    """`0.7 to 5`, or the one value."""
    found = sorted(values)
    low, high = (f"{value:.{digits}f}" for value in (found[0], found[-1]))
    return low if low == high else f"{low} to {high}"


def _escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _plain(html: str) -> str:
    return html.replace("<b>", "**").replace("</b>", "**")
