"""A plot of how many lesions are found, as SVG, with intervals: few lesions tell little."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from liverseg_core.drawing import FAINT, TUMOUR
from liverseg_core.evaluation.glossary import CRITERION_NAMES
from liverseg_core.evaluation.lesions import CRITERIA, SIZES, Detection, Lesions
from liverseg_core.report import svg
from liverseg_core.report.svg import MARGIN, SMALL, WIDTH, Scale

SIZE_NAMES = {
    "all": "All sizes",
    "below_10_mm": "Below 10 mm",
    "from_10_to_20_mm": "10 to 20 mm",
    "from_20_mm": "20 mm and above",
}
Z_95 = 1.959964


def lesions_plot(scores: Sequence[Mapping[str, Any]]) -> str:
    """Draw how many lesions are found and how many findings are right, by size, with 95 % intervals.

    Args:
        scores: Cases, as `CaseScore.record`.
    """
    found = sum((Lesions.from_record(score["lesions"]) for score in scores), Lesions())
    scale = Scale(0, 1, 96, WIDTH - 92)
    parts = [svg.text(MARGIN, 26, f"Lesions by size, {svg.cases(len(scores))}", size=15)]
    parts += _lesion_legend()
    y = 84.0
    for size in ("all", *SIZES):
        strict, loose = (
            sum(by_size.values(), Detection()) if size == "all" else by_size[size]
            for by_size in (found.counts[criterion] for criterion in CRITERIA)
        )
        parts.append(svg.text(MARGIN, y + 16, SIZE_NAMES[size], size=14))
        told = f"{strict.reference} in the reference, {strict.prediction} predicted"
        parts.append(svg.text(WIDTH - MARGIN, y + 16, told, colour=FAINT, size=SMALL, anchor="end"))
        parts += svg.grid(scale, y + 24, y + 86)
        parts += _rates(strict, loose, scale, y + 36)
        y += 92
    parts += svg.numbers(scale, y + 12)
    return svg.document(y + 26, "Lesion recall, precision and F1 by size", parts)


def _lesion_legend() -> Iterator[str]:
    found, touched = (CRITERION_NAMES[criterion] for criterion in CRITERIA)
    yield svg.dot(MARGIN + 5, 44, 4.5, f'fill="{TUMOUR}"')
    yield svg.text(MARGIN + 16, 48, f"found: {found}; line: 95 % interval (Wilson)", colour=FAINT, size=SMALL)
    yield svg.dot(MARGIN + 5, 64, 4.5, f'stroke="{TUMOUR}" stroke-width="1.5"')
    yield svg.text(MARGIN + 16, 68, f"touched: {touched}", colour=FAINT, size=SMALL)


def _rates(strict: Detection, loose: Detection, scale: Scale, y: float) -> Iterator[str]:
    shares = (
        ("Recall", strict.detected, strict.reference, loose.recall),
        ("Precision", strict.correct, strict.prediction, loose.precision),
    )
    for at, (name, right, whole, other) in enumerate(shares):
        here = y + at * 20
        yield svg.text(MARGIN, here + 4, name, colour=FAINT)
        yield svg.text(WIDTH - MARGIN, here + 4, f"{right} of {whole}" if whole else "none", anchor="end")
        if whole:
            low, high = wilson(right, whole)
            look = 'stroke-width="5" stroke-linecap="round" stroke-opacity="0.4"'
            yield svg.line(scale(low), here, scale(high), here, TUMOUR, look)
            yield svg.dot(scale(right / whole), here, 5, f'fill="{TUMOUR}"', f"{name} {right / whole:.2f}")
        if other is not None:
            yield svg.dot(
                scale(other), here, 5, f'stroke="{TUMOUR}" stroke-width="1.5"', f"{name} {other:.2f}"
            )
    yield svg.text(MARGIN, y + 44, "F1", colour=FAINT)
    yield svg.text(
        WIDTH - MARGIN, y + 44, "none" if strict.f1 is None else svg.number(strict.f1, 2), anchor="end"
    )
    for value, look in ((strict.f1, f'fill="{TUMOUR}"'), (loose.f1, f'stroke="{TUMOUR}" stroke-width="1.5"')):
        if value is not None:
            yield svg.diamond(scale(value), y + 40, 6, look)


def wilson(right: int, whole: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, 0–1.

    Example:
        >>> [round(end, 3) for end in wilson(9, 10)]
        [0.596, 0.982]
    """
    share, weight = right / whole, Z_95**2 / whole
    middle, half = share + weight / 2, Z_95 * math.sqrt(share * (1 - share) / whole + weight / (4 * whole))
    return max(0.0, (middle - half) / (1 + weight)), min(1.0, (middle + half) / (1 + weight))
