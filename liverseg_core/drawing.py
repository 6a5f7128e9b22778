"""Colours that all pictures and plots share, and how a figure becomes a file."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BACKGROUND, INK, FAINT = "#101014", "#e8e8ec", "#9a9aa6"
LIVER, TUMOUR = "#b45cff", "#ffd500"
"""A purple light enough to show on grey, and yellow."""


def save_png(figure: "Figure", path: Path) -> None:
    """Write a figure without date or software: the same figure gives the same bytes."""
    figure.savefig(path, format="png", facecolor=figure.get_facecolor(), metadata={"Software": None})
