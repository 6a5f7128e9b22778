"""Plots of how good a model is, from the records of its cases, as SVG.

What is not defined in a case is left out of its strip, and said; numbers have their sample size.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from liverseg_core.classes import GROUP_NAMES
from liverseg_core.drawing import BACKGROUND, FAINT, INK, LIVER, TUMOUR
from liverseg_core.evaluation.glossary import term
from liverseg_core.evaluation.overlap import GROUPS
from liverseg_core.report import svg
from liverseg_core.report.agreement import paired_plot, volumes_plot
from liverseg_core.report.detection import lesions_plot
from liverseg_core.report.sources import Rival
from liverseg_core.report.svg import MARGIN, SMALL, WIDTH, Scale

__all__ = ["lesions_plot", "measures_plot", "paired_plot", "volumes_plot"]

Records = Sequence[Mapping[str, Any]]

STRIP, RIVAL_STRIP = 28, 20
FEWEST_IN_BOX, CROWD = 4, 40


@dataclass(frozen=True)
class Measure:
    """A measure as it is plotted."""

    key: str
    best: float
    """The worst value is the farthest from it."""
    least_span: float = 0.1
    digits: int | None = None
    bent: bool = True
    """Whether a few large values may bend its scale."""

    aside: str = ""

    @property
    def name(self) -> str:
        """As the glossary calls it."""
        known = term(self.key)
        words = ", ".join(part for part in (known.label, known.unit) if part)
        return f"{words[0].upper()}{words[1:]}{self.aside}"


DICE = Measure("dice", 1, digits=3)
OTHERS = (
    Measure("surface_dice_2mm", 1, digits=3),
    Measure("voe", 0, digits=3, bent=False),
    Measure("hd95_mm", 0, 2),
    Measure("assd_mm", 0, 1),
    Measure("mssd_mm", 0, 2),
    Measure("rvd", 0, digits=3, aside=" (+: too large)"),
)


@dataclass(frozen=True)
class Place:
    """Where a panel is, and how many cases its numbers are of."""

    left: float
    top: float
    width: float
    cases: int


def measures_plot(scores: Records, rival: Rival | None) -> str:
    """Draw each measure's values by class group: a dot per case over a box, the rival's below.

    Args:
        scores: Cases, as `CaseScore.record`.
        rival: Another model, drawn in grey.
    """
    parts = [svg.text(MARGIN, 26, f"Measures by case, {svg.cases(len(scores))}", size=15)]
    if not scores:
        return svg.document(44, "No cases", parts)
    top = 48.0
    if rival:
        parts += _legend(rival.name, top)
        top += 20
    note = "Box: quartiles, median. Diamond and figure: mean. Ring: worst case."
    parts.append(svg.text(MARGIN, top, note, colour=FAINT, size=SMALL))
    panels, bottom = _panel(DICE, scores, rival, Place(MARGIN, top + 30, WIDTH - 2 * MARGIN, len(scores)))
    parts += panels
    half = (WIDTH - 3 * MARGIN - 6) / 2
    for at in range(0, len(OTHERS), 2):
        beginning, bottoms = bottom + 26, []
        for column, measure in enumerate(OTHERS[at : at + 2]):
            place = Place(MARGIN + column * (half + MARGIN + 6), beginning, half, len(scores))
            panels, ends = _panel(measure, scores, rival, place)
            parts += panels
            bottoms.append(ends)
        bottom = max(bottoms)
    return svg.document(bottom + MARGIN, "Measures by case and class group", parts)


def _legend(name: str, top: float) -> Iterator[str]:
    yield svg.dot(MARGIN + 5, top - 4, 4, f'fill="{LIVER}"')
    yield svg.dot(MARGIN + 15, top - 4, 4, f'fill="{TUMOUR}"')
    yield svg.text(MARGIN + 25, top, "this model")
    yield svg.dot(MARGIN + 117, top - 4, 4, f'fill="{FAINT}"')
    yield svg.text(MARGIN + 127, top, svg.shorten(name, WIDTH - 2 * MARGIN - 127))


def _panel(measure: Measure, scores: Records, rival: Rival | None, place: Place) -> tuple[list[str], float]:
    """A measure's strips and scale; where it ends."""
    models = [scores, rival.scores] if rival else [scores]
    by_group = {group: [_values(records, group, measure) for records in models] for group in GROUPS}
    scale = _scale(
        measure, [v for strips in by_group.values() for strip in strips for v in strip.values()], place
    )
    title = measure.name + ("" if scale.bend is None else ", log")
    parts, y = [svg.text(place.left, place.top, title, size=14)], place.top + 2
    for group, strips in by_group.items():
        absent = [len(records) - len(strip) for records, strip in zip(models, strips, strict=True)]
        words, y = _words(group, measure, strips, absent, replace(place, top=y))
        parts += words
        colours = TUMOUR if group == "tumour" else LIVER, FAINT
        for strip, colour, high in zip(strips, colours, (STRIP, RIVAL_STRIP), strict=False):
            if strip:
                parts += svg.grid(scale, y, y + high)
                parts += _strip(strip, measure, scale, (y, high), colour)
                y += high
        y += 5
    return [*parts, *svg.numbers(scale, y + 10)], y + 12


def _values(scores: Records, group: str, measure: Measure) -> dict[str, float]:
    """A measure by case, where it is defined."""
    found = {score["case"]: score[group][measure.key] for score in scores}
    return {case: value for case, value in found.items() if value is not None and math.isfinite(value)}


def _scale(measure: Measure, values: Sequence[float], place: Place) -> Scale:
    ends = place.left + 6, place.left + place.width - 8
    if measure.best == 1:
        lowest = min(values, default=0.9)
        return Scale(max(0.0, math.floor(lowest * 10 - 0.2) / 10), 1.0, *ends)
    return svg.spanning([*values, 0.0], ends, measure.least_span, measure.bent)


def _words(
    group: str, measure: Measure, strips: Sequence[Mapping[str, float]], absent: Sequence[int], place: Place
) -> tuple[list[str], float]:
    """A group's name, mean, worst case and how many cases are undefined; where they end."""
    right, y, ours = place.left + place.width, place.top + 18, strips[0]
    parts = [svg.text(place.left, y, GROUP_NAMES[group].capitalize())]
    means = [_figure(sum(strip.values()) / len(strip), measure) if strip else "" for strip in strips]
    if measure is DICE and means[1:]:  # only this panel is wide enough for both
        parts.append(svg.text(right, y, means[1], colour=FAINT, anchor="end"))
        right -= 48
    parts.append(svg.text(right, y, means[0], anchor="end"))
    right = place.left + place.width
    undefined = f"{absent[0]} undefined" if ours else f"undefined in all {absent[0]}"
    if ours:
        worst = _worst(ours, measure)
        told = f" {_figure(ours[worst], measure)}"
        room = place.width - (len(told) + 8 + (len(undefined) if absent[0] else 0)) * 6.6
        words = f"worst {svg.shorten(worst, room, SMALL)}{told}"
        parts.append(svg.text(place.left, y + 16, words, colour=FAINT, size=SMALL))
    lines = [undefined] if absent[0] else [""]
    if absent[1:] and absent[1] != absent[0]:
        lines.append(f"grey: {absent[1]} undefined")
    for at, words in enumerate(lines):
        if words:
            parts.append(svg.text(right, y + 16 + 15 * at, words, colour=FAINT, size=SMALL, anchor="end"))
    return parts, y + 22 + 15 * (len(lines) - 1)


def _figure(value: float, measure: Measure) -> str:
    return svg.number(value, measure.digits)


def _worst(values: Mapping[str, float], measure: Measure) -> str:
    return max(values, key=lambda case: abs(values[case] - measure.best))


def _strip(
    values: Mapping[str, float], measure: Measure, scale: Scale, band: tuple[float, float], colour: str
) -> Iterator[str]:
    """Dots beside one another where they would overlap, the worst in a ring, and box and mean over them."""
    (top, high), count = band, len(values)
    cases = sorted(values, key=lambda case: scale(values[case]))
    radius = 3.2 if count <= CROWD else 1.5
    xs = [scale(values[case]) for case in cases]
    places = dict(
        zip(cases, zip(xs, _beside(xs, radius, top + high / 2, high / 2 - 2), strict=True), strict=True)
    )
    if measure is DICE and colour != FAINT:
        for case, (x, y) in places.items():
            yield svg.dot(x, y, radius, f'fill="{colour}"', f"{case}: {_figure(values[case], measure)}")
    else:
        yield svg.specks(places.values(), radius, colour)
    if colour != FAINT:
        worst = _worst(values, measure)
        title = f"{worst}: {_figure(values[worst], measure)}"
        yield svg.dot(*places[worst], radius + 2, f'stroke="{INK}" fill="{colour}" fill-opacity="0"', title)
    if count >= FEWEST_IN_BOX:
        q1, median, q3 = (scale(float(q)) for q in np.percentile(list(values.values()), (25, 50, 75)))
        edge = colour if count <= CROWD else INK
        yield svg.bar(q1, top + 3, q3 - q1, high - 6, f'fill="{colour}" fill-opacity="0.2" stroke="{edge}"')
        yield svg.line(median, top + 3, median, top + high - 3, INK, 'stroke-width="2"')
    if count > 1:
        mean = scale(sum(values.values()) / count)
        yield svg.diamond(mean, top + high / 2, 4, f'fill="{INK}" stroke="{BACKGROUND}"')


def _beside(xs: Sequence[float], radius: float, middle: float, most: float) -> list[float]:
    """Heights for dots at ascending places: each in the lane nearest to the middle that is free there."""
    lanes = sorted(range(-int(most // (2 * radius)), int(most // (2 * radius)) + 1), key=abs)
    ends = dict.fromkeys(lanes, -math.inf)
    heights = []
    for x in xs:
        lane = next(
            (lane for lane in lanes if ends[lane] + 2 * radius <= x), min(lanes, key=ends.__getitem__)
        )
        ends[lane] = x
        heights.append(middle + lane * 2 * radius)
    return heights
