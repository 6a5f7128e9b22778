"""Learning curves: a picture of whatever a history holds, the same bytes for the same history."""

import json
from pathlib import Path

import pytest
from matplotlib.image import imread

from liverseg_core.training.learning_curves import learning_curves_png

PATCHES = {"loss": 1.0, "dice_liver": 0.5, "dice_tumour": 0.2}
HELD_OUT = {"validation_dice_liver": 0.6}


@pytest.mark.parametrize(
    "lines",
    [
        [{"step": 10, "loss": 1.0}],
        [{"step": step, **PATCHES} for step in (10, 20, 30)],
        [
            {"step": 10, **PATCHES},
            {"step": 10, **HELD_OUT},
            {"step": 20, "loss": 0.5},
            {"step": 20, **HELD_OUT},
        ],
    ],
)
def test_any_history_is_drawn(tmp_path: Path, lines: list[dict[str, float]]) -> None:
    history, first, second = (tmp_path / name for name in ("history.jsonl", "first.png", "second.png"))
    history.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for path in (first, second):
        learning_curves_png(path, history, [], "a title with $ and _")
    assert first.read_bytes() == second.read_bytes()
    assert imread(first).shape == (640, 1100, 4)
    learning_curves_png(second, history, [10, 20], "a title with $ and _")
    assert first.read_bytes() != second.read_bytes(), "restarts leave marks"
