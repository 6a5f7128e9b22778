"""Plots of differences: predicted and true volumes, and one model and another, case by case."""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np

from liverseg_core.drawing import BACKGROUND, FAINT, INK, LIVER, TUMOUR
from liverseg_core.evaluation.comparison import Comparison, compare, scores_of
from liverseg_core.report import svg
from liverseg_core.report.sources import Rival
from liverseg_core.report.svg import MARGIN, SMALL, WIDTH, Scale

Records = Sequence[Mapping[str, Any]]
Volumes = Mapping[str, tuple[float, float]]
"""Case → predicted and reference ml."""

PLOT_HEIGHT, LEFT = 190, 62
FEWEST_FOR_LIMITS = 3
MOST_NAMED, NAMES_WIDTH = 24, 132
PAIRED = (
    ("liver", "dice", LIVER, "Liver with tumour"),
    ("tumour", "dice_lits", TUMOUR, "Tumour (1 where neither label has any)"),
)


def volumes_plot(scores: Records) -> str:
    """Draw predicted − reference volume against their mean (Bland–Altman), of tumours and of livers.

    Args:
        scores: Cases, as `CaseScore.record`.
    """
    parts, y = [svg.text(MARGIN, 26, "Volumes: predicted − reference", size=15)], 52.0
    for group, name, colour in (("tumour", "tumour", TUMOUR), ("liver", "liver", LIVER)):
        volumes = {
            score["case"]: (score[group]["volume_ml"], score[group]["reference_volume_ml"])
            for score in scores
        }
        held = {case: pair for case, pair in volumes.items() if any(pair)}
        parts += _agreement(name, colour, held, len(scores) - len(held), y)
        y += PLOT_HEIGHT + 124 if held else 56
    return svg.document(y - 8, "Bland–Altman plots of tumour and liver volume", parts)


def _agreement(name: str, colour: str, volumes: Volumes, absent: int, y: float) -> Iterator[str]:
    """What one plot says in words, and the plot below."""
    without = f", {absent} without {name} in either label left out" if absent else ""
    counted = f"{svg.cases(len(volumes))}{without}"
    yield svg.text(MARGIN, y + 19, counted, colour=FAINT, size=SMALL)
    if not volumes:
        yield svg.text(MARGIN, y, f"{name.capitalize()}, ml", size=14)
        return
    differences = {case: ours - true for case, (ours, true) in volumes.items()}
    bias, limits = _limits(list(differences.values()))
    told = f"bias {svg.number(bias, sign=True)}"
    if limits:
        told += " to ".join(svg.number(end, sign=True) for end in limits).join((", 95 % limits ", " ml"))
    else:
        told += f" ml; limits need {FEWEST_FOR_LIMITS} cases"
    yield svg.text(MARGIN, y + 36, told, colour=FAINT, size=SMALL)
    largest = max(differences, key=lambda case: abs(differences[case]))
    shown = svg.shorten(largest, WIDTH - 2 * MARGIN - 190, SMALL)
    farthest = f"farthest off: {shown} {svg.number(differences[largest], sign=True)} ml"
    yield svg.text(MARGIN, y + 53, farthest, colour=FAINT, size=SMALL)
    top, bottom = y + 66, y + 66 + PLOT_HEIGHT
    up = svg.spanning([*differences.values(), *(limits or ())], (bottom, top), 1.0, bent=True)
    along = _along([sum(pair) / 2 for pair in volumes.values()], (LEFT, WIDTH - MARGIN - 4))
    bent = ", log scale" if up.bend else ""
    yield svg.text(MARGIN, y, f"{name.capitalize()}, ml{bent}", size=14)
    yield from _bland_altman(volumes, colour, (along, up), (bias, *(limits or ())))


def _bland_altman(
    volumes: Volumes, colour: str, scales: tuple[Scale, Scale], lines: tuple[float, ...]
) -> Iterator[str]:
    """Dots, the bias as a line, and its limits as dashed ones where there are any."""
    along, up = scales
    left, right, bottom = along.start, along.end, up.start
    yield from svg.grid(along, up.end, bottom)
    yield from svg.numbers(along, bottom + 14)
    yield from svg.upward(up, left, right)
    caption = f"mean of predicted and reference, ml{', log scale' if along.bend else ''}"
    yield svg.text(right, bottom + 32, caption, colour=FAINT, size=SMALL, anchor="end")
    bias, *limits = lines
    if limits:
        low, high = (up(end) for end in limits)
        yield svg.bar(left, high, right - left, low - high, f'fill="{colour}" fill-opacity="0.1"')
        yield from (svg.line(left, end, right, end, colour, 'stroke-dasharray="5 4"') for end in (low, high))
    yield svg.line(left, up(bias), right, up(bias), colour, 'stroke-width="1.6"')
    radius = 4.5 if len(volumes) <= 40 else 3
    look = f'fill="{colour}" fill-opacity="0.85" stroke="{BACKGROUND}"'
    for case, (ours, true) in volumes.items():
        title = f"{case}: predicted {svg.number(ours)} ml, reference {svg.number(true)} ml"
        yield svg.dot(along((ours + true) / 2), up(ours - true), radius, look, title)


def _limits(differences: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Mean difference, and 1.96 standard deviations either side where there are enough cases."""
    bias = float(np.mean(differences))
    if len(differences) < FEWEST_FOR_LIMITS:
        return bias, None
    half = 1.96 * float(np.std(differences, ddof=1))
    return bias, (bias - half, bias + half)


def _along(means: Sequence[float], ends: tuple[float, float]) -> Scale:
    """From 0 where volumes are alike in size or span decades, which bends it, else from near the least."""
    low, high = min(means), max(means)
    if high > 30 * low:
        return Scale(0, high * 1.1, *ends, max(float(np.median(means)) / 10, high / 1e4))
    room = max(0.06 * (high - low), 0.02 * high)
    return Scale(max(0.0, low - room), high + room, *ends)


def paired_plot(scores: Records, rival: Rival) -> str:
    """Draw by how much each case's Dice is above or below a rival's, and the mean with its interval.

    Args:
        scores: Cases, as `CaseScore.record`.
        rival: Another model on the same cases.
    """
    name = svg.shorten(rival.name, WIDTH - 2 * MARGIN - 180, 15)
    parts, y = [svg.text(MARGIN, 26, f"Dice, this model − {name}", size=15)], 56.0
    for group, measure, colour, title in PAIRED:
        comparison = compare(*(_defined(records, group, measure) for records in (scores, rival.scores)))
        elements, y = _paired(title, colour, comparison, y)
        parts += elements
    return svg.document(y - 12, "Differences in Dice between two models, by case", parts)


def _defined(scores: Records, group: str, measure: str) -> dict[str, float | None]:
    """A measure by case, None also where it is NaN."""
    found = scores_of(scores, group, measure)
    return {case: value if value is not None and isfinite(value) else None for case, value in found.items()}


def _paired(title: str, colour: str, found: Comparison, y: float) -> tuple[list[str], float]:
    count = len(found.differences)
    told = svg.cases(count)
    if found.left_out:
        told += f", {len(found.left_out)} left out: not scored or not defined in both"
    parts = [
        svg.text(MARGIN, y, title, size=14),
        svg.text(MARGIN, y + 19, told, colour=FAINT, size=SMALL),
        svg.text(MARGIN, y + 38, _verdict(found)),
    ]
    if found.mean is None:
        return parts, y + 72
    named = count <= MOST_NAMED
    left = MARGIN + (NAMES_WIDTH if named else 0)
    widest = max(0.005, *map(abs, found.differences.values())) * 1.08
    scale = Scale(-widest, widest, left + 12, WIDTH - MARGIN - 12)
    top, high = y + 66, 18.0 if named else max(1.5, min(12.0, 320 / count))
    bottom = top + 34 + count * high
    parts += [
        svg.text(left + 12, top - 7, "← worse", colour=FAINT, size=SMALL),
        svg.text(WIDTH - MARGIN - 12, top - 7, "better →", colour=FAINT, size=SMALL, anchor="end"),
        *svg.grid(scale, top, bottom),
        *svg.numbers(scale, bottom + 14),
        *_mean(found, scale, top + 15),
    ]
    if named:
        parts.append(svg.text(MARGIN, top + 19, "mean"))
    worst_first = sorted(found.differences.items(), key=lambda pair: pair[1])
    for at, (case, difference) in enumerate(worst_first):
        parts += _case(case, difference, scale, (top + 32 + at * high, high), colour)
    return parts, bottom + 46


def _verdict(found: Comparison) -> str:
    if found.mean is None:
        return "nothing to compare"
    mean = f"mean {svg.number(found.mean, 4, sign=True)}"
    if found.low is None or found.high is None:
        return f"{mean}; an interval needs two cases"
    told = "better" if found.low > 0 else "worse" if found.high < 0 else "no clear difference"
    ends = f"{svg.number(found.low, 4, sign=True)} to {svg.number(found.high, 4, sign=True)}"
    return f"{mean} ({100 * found.confidence:.0f} %: {ends}), {told}"


def _mean(found: Comparison, scale: Scale, y: float) -> Iterator[str]:
    if found.low is not None and found.high is not None:
        yield svg.line(scale(found.low), y, scale(found.high), y, INK, 'stroke-width="2.5"')
        for end in (found.low, found.high):
            yield svg.line(scale(end), y - 6, scale(end), y + 6, INK, 'stroke-width="2"')
    if found.mean is not None:
        yield svg.diamond(scale(found.mean), y, 6, f'fill="{INK}" stroke="{BACKGROUND}"')


def _case(
    case: str, difference: float, scale: Scale, band: tuple[float, float], colour: str
) -> Iterator[str]:
    (top, high), zero, end = band, scale(0), scale(difference)
    fill = f'fill="{colour if difference >= 0 else FAINT}"'
    title = f"{case}: {svg.number(difference, 4, sign=True)}"
    gap = 0.15 * high if high > 6 else 0  # thin bars with gaps would shimmer
    yield svg.bar(
        min(zero, end), top + gap, abs(end - zero), high - 2 * gap if gap else high + 0.5, fill, title
    )
    if scale.start > NAMES_WIDTH:
        yield svg.text(
            MARGIN, top + high / 2 + 4, svg.shorten(case, NAMES_WIDTH - 8, SMALL), colour=FAINT, size=SMALL
        )
