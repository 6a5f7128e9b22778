"""Learning curves from a training's history, with a mark wherever it was stopped and went on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liverseg_core.drawing import BACKGROUND, FAINT, INK, LIVER, TUMOUR, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOSS = "#6fc3ff"
GRID = "#33333c"
NAMES = {"liver": (LIVER, "liver with tumour"), "tumour": (TUMOUR, "tumour")}


def learning_curves_png(path: Path, history: Path, resumed_from: Sequence[int], title: str) -> None:
    """Draw loss and Dice over the steps of a training.

    Args:
        path: The PNG to write.
        history: `history.jsonl` of a model folder.
        resumed_from: Steps that training went on from after it had been stopped.
        title: Printed above.
    """
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in history.read_text().splitlines()]
    figure = Figure((11, 6.4), dpi=100, facecolor=BACKGROUND, layout="constrained")
    figure.suptitle(title, color=INK, fontsize=13, x=0.01, ha="left", parse_math=False)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    _plot(above, lines, "loss", color=LOSS, linewidth=1.3)
    above.set_ylabel("loss", color=INK)
    for group, (colour, name) in NAMES.items():
        _plot(below, lines, f"dice_{group}", color=colour, linewidth=1, alpha=0.65, label=f"{name}, patches")
        held_out = {"color": colour, "linewidth": 1.8, "linestyle": "--", "marker": "o", "markersize": 5}
        _plot(below, lines, f"validation_dice_{group}", label=f"{name}, validation cases", **held_out)
    below.set(ylim=(-0.02, 1.02), xlabel="step")
    below.set_ylabel("Dice", color=INK)
    for axes in (above, below):
        for number, step in enumerate(resumed_from):
            label = "stopped, went on" if number == 0 else None
            axes.axvline(step, color=FAINT, linestyle=":", linewidth=1.2, label=label)
        _dress(axes)
    below.xaxis.label.set_color(INK)
    if below.get_legend_handles_labels()[0]:
        handles, labels = below.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=3, frameon=False, labelcolor=INK, fontsize=9
        )
    save_png(figure, path)


def _plot(axes: "Axes", lines: Sequence[dict[str, float]], name: str, **style: Any) -> None:
    points = [(line["step"], line[name]) for line in lines if name in line]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, **style)


def _dress(axes: "Axes") -> None:
    axes.set_facecolor(BACKGROUND)
    axes.tick_params(colors=FAINT, labelcolor=INK, length=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
