"""Dice at a glance: every case a dot, over a box a class group."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from liverseg_core.classes import GROUP_NAMES
from liverseg_core.drawing import BACKGROUND, FAINT, INK, LIVER, TUMOUR, save_png
from liverseg_core.words import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def dice_plot_png(path: Path, per_case: Mapping[str, Mapping[str, float]]) -> None:
    """Draw every case's Dice as a dot, over a box per class group; NaN is left out and counted.

    Args:
        path: The PNG to write.
        per_case: Case name → class group → Dice.
    """
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys(group for dices in per_case.values() for group in dices))
    figure = Figure(
        (1.2 + 2.6 * max(len(groups), 1), 5.4), dpi=100, facecolor=BACKGROUND, layout="constrained"
    )
    axes = figure.add_subplot(facecolor=BACKGROUND)
    names = []
    lowest = 1.0
    for at, group in enumerate(groups):
        dices = {case: d[group] for case, d in per_case.items() if group in d and not math.isnan(d[group])}
        names.append(f"{GROUP_NAMES[group]}\n{_summary(list(dices.values()), len(per_case))}")
        if dices:
            _draw_group(axes, at, dices, LIVER if group.startswith("liver") else TUMOUR)
            lowest = min(lowest, *dices.values())
    axes.set_xlim(-0.45, max(len(groups), 1) - 0.25)
    axes.set_ylim(max(0.0, math.floor(lowest * 10 - 0.3) / 10), 1.005)
    axes.set_xticks(range(len(groups)), names, color=INK)
    axes.set_title(f"Dice by case, {counted(len(per_case), 'case')}", color=INK, fontsize=12, loc="left")
    axes.tick_params(colors=FAINT, labelcolor=INK, length=0)
    axes.grid(axis="y", color="#33333c", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    save_png(figure, path)


def _summary(dices: Sequence[float], cases: int) -> str:
    absent = f", {cases - len(dices)} undefined" if len(dices) < cases else ""
    mean = f"mean {sum(dices) / len(dices):.3f}\n" if dices else "\n"
    return f"{mean}n = {len(dices)}{absent}"


def _draw_group(axes: "Axes", at: int, dices: Mapping[str, float], colour: str) -> None:
    """A box, the dots beside one another where they would overlap, and the worst case's name."""
    values = sorted(dices.values())
    line = {"color": colour, "linewidth": 1.3}
    axes.boxplot(
        values, positions=[at], widths=0.5, showfliers=False, patch_artist=True,
        boxprops={"facecolor": colour + "22", "edgecolor": colour, "linewidth": 1.3},
        medianprops={"color": INK, "linewidth": 2}, whiskerprops=line, capprops=line, manage_ticks=False,
    )  # fmt: skip
    offsets = [0.12 * (-1, 0, 1)[rank % 3] for rank in range(len(values))]
    axes.scatter(
        [at + o for o in offsets], values, s=26, color=colour, edgecolor=BACKGROUND, zorder=3, clip_on=False
    )
    worst = min(dices, key=lambda case: (dices[case], case))
    axes.annotate(
        f"lowest: {worst}", (at + 0.25, dices[worst]), xytext=(4, 0), textcoords="offset points",
        color=FAINT, fontsize=8, va="center", parse_math=False,
    )  # fmt: skip
