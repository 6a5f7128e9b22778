"""SVG by hand: a dark panel whose words stay words, narrow enough to be read on a phone.

Colours are attributes, so that any viewer has them; one style turns them over for print.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from liverseg_core.drawing import BACKGROUND, FAINT, INK, LIVER, TUMOUR
from liverseg_core.training.learning_curves import GRID

WIDTH, MARGIN = 480, 14
"""In units of the drawing, of which words are 13 high: a phone shows three quarters of a pixel a unit."""
SIZE, SMALL = 13, 12
LETTER = 0.56
"""Width of a mean letter of common sans-serif faces, of its size."""

ON_PAPER = {
    **{BACKGROUND: "#ffffff", INK: "#000000", FAINT: "#4a4a52", GRID: "#cfcfd6"},
    **{LIVER: "#7d2fd0", TUMOUR: "#a87f00"},
}


@dataclass(frozen=True)
class Scale:
    """Values to places; with a bend, about linear within ± bend and logarithmic beyond."""

    low: float
    high: float
    start: float
    end: float
    bend: float | None = None

    def __call__(self, value: float) -> float:
        low, high, at = map(self._flat, (self.low, self.high, min(max(value, self.low), self.high)))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def _flat(self, value: float) -> float:
        return value if self.bend is None else math.asinh(value / self.bend)

    def ticks(self, apart: float) -> list[float]:
        """Round values at least so many units apart."""
        if self.bend is None:
            return _steps(self.low, self.high, abs(self.end - self.start) / apart)
        found: list[float] = []
        for value in _decades(self.low, self.high, self.bend):
            if all(abs(self(value) - self(other)) >= apart for other in found):
                found.append(value)
        return sorted(found)


def _steps(low: float, high: float, most: float) -> list[float]:
    least = (high - low) / max(most, 1)
    power = 10.0 ** math.floor(math.log10(least))
    step = next(n * power for n in (1, 2, 5, 10) if n * power >= least * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def _decades(low: float, high: float, bend: float) -> Iterator[float]:
    """0, then powers of ten, then fives and twos, of either sign, from the bend on."""
    yield from [0.0] if low <= 0 <= high else []
    largest = max(abs(low), abs(high))
    powers = range(math.floor(math.log10(largest)), math.floor(math.log10(bend)) - 1, -1)
    for digit in (1, 5, 2):
        values = (sign * digit * 10.0**power for power in powers for sign in (1, -1))
        yield from (value for value in values if low <= value <= high)


def spanning(values: Sequence[float], ends: tuple[float, float], lowest_span: float, bent: bool) -> Scale:
    """A scale that holds 0 and all values, bent where a few of them are far beyond the others."""
    low, high = min(0.0, *values), max(0.0, *values)
    room = 0.04 * max(high - low, lowest_span)
    low, high = low - room * (low < 0), max(high + room, low + lowest_span)
    sizes = sorted(abs(value) for value in values if value)
    middle = sizes[len(sizes) // 2] if sizes else 0.0
    far = bool(sizes) and sizes[-1] > 10 * max(middle, lowest_span)
    bend = middle if bent and far else None
    return Scale(low, high, *ends, bend)


def number(value: float, digits: int | None = None, *, sign: bool = False) -> str:
    """A number with a true minus; by default with three figures that count."""
    if digits is None:
        digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    shown = f"{value:{'+' if sign else ''}.{digits}f}"
    return (shown.lstrip("+-") if not shown.strip("+-0.") else shown).replace("-", "−")


def cases(count: int) -> str:
    """`1 case`, `12 cases`."""
    return f"{count} case{'' if count == 1 else 's'}"


def shorten(name: str, units: float, size: float = SIZE) -> str:
    """A name as far as there is room, its end kept: names of cases differ there."""
    letters = max(4, int(units / (LETTER * size)))
    return name if len(name) <= letters else f"{name[: letters // 2 - 1]}…{name[-(letters - letters // 2) :]}"


def text(
    x: float, y: float, words: str, *, colour: str = INK, size: float = SIZE, anchor: str = "start"
) -> str:
    """Words on one line."""
    aside = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size}"{aside}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str = GRID, look: str = "") -> str:
    """A straight line; `look` is more attributes."""
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}" {look}/>'


def bar(x: float, y: float, wide: float, high: float, look: str, title: str = "") -> str:
    """A rectangle from its upper left; `look` is its attributes."""
    place = f'x="{x:.1f}" y="{y:.1f}" width="{max(wide, 0):.1f}" height="{high:.1f}"'
    return f"<rect {place} {look}>{_title(title)}</rect>"


def dot(x: float, y: float, radius: float, look: str, title: str = "") -> str:
    """A dot that says what it is when it is pointed at."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" {look}>{_title(title)}</circle>'


def specks(points: Iterable[tuple[float, float]], radius: float, colour: str) -> str:
    """Many dots as one short path."""
    path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
    return f'<path d="{path}" stroke="{colour}" stroke-width="{2 * radius}" stroke-linecap="round"/>'


def diamond(x: float, y: float, radius: float, look: str) -> str:
    """A square on its corner."""
    r = radius
    return f'<path d="M{x - r:.1f} {y:.1f}l{r} {-r}l{r} {r}l{-r} {r}z" {look}/>'


def grid(scale: Scale, top: float, bottom: float) -> Iterator[str]:
    """A horizontal scale's lines from top to bottom."""
    for value in _told(scale):
        yield line(scale(value), top, scale(value), bottom, GRID, _weight(value))


def numbers(scale: Scale, y: float) -> Iterator[str]:
    """A horizontal scale's numbers."""
    for value, words in _told(scale).items():
        yield text(scale(value), y, words, colour=FAINT, size=SMALL, anchor="middle")


def upward(scale: Scale, left: float, right: float) -> Iterator[str]:
    """A vertical scale's lines from left to right, and its numbers at the left."""
    ticks = scale.ticks(22)
    for value in ticks:
        yield line(left, scale(value), right, scale(value), GRID, _weight(value))
        yield text(left - 6, scale(value) + 4, _tick(value, ticks), colour=FAINT, size=SMALL, anchor="end")


def _weight(value: float) -> str:
    return f'stroke-width="{0.8 if value else 1.6}"'


def _told(scale: Scale) -> dict[float, str]:
    """As many ticks as there is room for what they say."""
    told: dict[float, str] = {}
    for apart in (28, 36, 44, 54, 66, 80):
        ticks = scale.ticks(apart)
        told = {value: _tick(value, ticks) for value in ticks}
        if max(map(len, told.values()), default=0) * SMALL * 0.62 + 8 <= apart:
            break
    return told


def _tick(value: float, ticks: Sequence[float]) -> str:
    """With as many decimals as the finest of them needs, or with its own where they span decades."""
    apart = [b - a for a, b in pairwise(ticks)]
    even = apart and max(apart) < 1.01 * min(apart)
    finest = min(apart) if even else abs(value) or 1.0
    return number(value, max(0, -math.floor(math.log10(finest) + 1e-9)))


def document(height: float, label: str, parts: Iterable[str]) -> str:
    """The picture: its parts on a dark panel.

    Args:
        height: In units; the width is `WIDTH`.
        label: What a screen reader says.
        parts: Elements, from the back to the front.
    """
    print_rules = "".join(
        f'.plot [{kind}="{dark}"]{{{kind}:{light}}}'
        for kind in ("fill", "stroke")
        for dark, light in ON_PAPER.items()
    )
    style = (
        f":where(.plot){{display:block;width:100%;max-width:44rem;height:auto}}@media print{{{print_rules}}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" role="img" aria-label="{escape(label)}" '
        f'viewBox="0 0 {WIDTH} {height:.0f}" font-family="system-ui, sans-serif" fill="none">'
        f'<style>{style}</style><rect width="{WIDTH}" height="{height:.0f}" rx="8" fill="{BACKGROUND}"/>'
        f"{''.join(parts)}</svg>"
    )


def _title(words: str) -> str:
    return f"<title>{escape(words)}</title>" if words else ""
