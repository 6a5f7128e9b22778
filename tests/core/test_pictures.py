"""Pictures: what they cut through, which side is which, which colour is where, the same bytes each time."""

import math
from pathlib import Path

import numpy as np
import pytest

from liverseg_core.drawing import LIVER, TUMOUR
from liverseg_core.evaluation.dice_plot import dice_plot_png
from liverseg_core.pictures import focus, overlay_png

SPACING_MM = (3.0, 3.0, 5.0)
SHAPE = (60, 50, 30)


def scan() -> tuple[np.ndarray, np.ndarray]:
    """A body with a square liver on the patient's right and one tumour in its upper front corner."""
    image = np.full(SHAPE, -1000, np.int16)
    image[4:56, 4:46] = 40
    label = np.zeros(SHAPE, np.uint8)
    label[36:52, 15:40, 8:22] = 1
    label[44:50, 32:38, 15:20] = 2
    return image, label


def pixels(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)[..., :3]


def coloured(picture: np.ndarray, colour: str) -> np.ndarray:
    """Positions (row, column) of pixels of a hex colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.argwhere(np.abs(picture - wanted).max(-1) < 0.03)


def test_focus_is_in_the_largest_tumour_then_the_liver_then_the_middle() -> None:
    _, label = scan()
    label[1:3, 1:3, 1:3] = 2
    x, y, z = focus(label, None, SHAPE)
    assert 44 <= x < 50
    assert 32 <= y < 38
    assert 15 <= z < 20
    liver = (label > 0).astype(np.uint8)
    assert label[focus(liver, label, SHAPE)] == 2, "the prediction's tumour, where the reference has none"
    assert liver[focus(liver, None, SHAPE)] == 1
    assert focus(np.zeros(SHAPE, np.uint8), None, SHAPE) == (30, 25, 15)


def test_focus_is_inside_a_hollow_tumour() -> None:
    label = np.zeros((21, 21, 21), np.uint8)
    label[3:18, 3:18, 3:18] = 2
    label[5:16, 5:16, 5:16] = 1
    assert label[focus(label, None, label.shape)] == 2


def test_patient_right_is_on_the_left_and_front_is_up(tmp_path: Path) -> None:
    image, label = scan()
    overlay_png(tmp_path / "case.png", image, label, None, SPACING_MM, "case")
    picture = pixels(tmp_path / "case.png")
    axial = picture[80:-80, : int(picture.shape[1] * 0.36)]
    liver, tumour = coloured(axial, LIVER), coloured(axial, TUMOUR)
    assert len(liver) > 100
    assert len(tumour) > 30
    assert liver[:, 1].mean() < axial.shape[1] / 2
    assert tumour[:, 1].mean() < liver[:, 1].mean(), "the tumour is the more lateral"
    assert tumour[:, 0].mean() < liver[:, 0].mean(), "the tumour is the more anterior"


def test_physical_aspect(tmp_path: Path) -> None:
    """A tumour of 36 mm on every side is drawn square in all three planes."""
    image = np.full(SHAPE, 40, np.int16)
    label = np.zeros(SHAPE, np.uint8)
    label[20:32, 20:32, 10:19] = 2
    overlay_png(tmp_path / "case.png", image, label, None, (3.0, 3.0, 4.0), "")
    picture = pixels(tmp_path / "case.png")
    thirds = np.array_split(picture[60:-75], [int(picture.shape[1] * f) for f in (0.353, 0.71)], axis=1)
    for third in thirds:
        high, wide = np.ptp(coloured(third, TUMOUR), axis=0)
        assert wide == pytest.approx(high, abs=3)


@pytest.mark.parametrize("drawn", ["both", "reference", "prediction", "neither"])
def test_any_of_the_labels_may_be_absent(tmp_path: Path, drawn: str) -> None:
    image, label = scan()
    reference = label if drawn in ("both", "reference") else None
    prediction = label if drawn in ("both", "prediction") else None
    overlay_png(tmp_path / "case.png", image, reference, prediction, SPACING_MM, "liver_$1$ & co")
    lines = len(coloured(pixels(tmp_path / "case.png"), TUMOUR))
    assert (lines > 100) == (reference is not None)


@pytest.mark.parametrize("shape", [(40, 30, 1), (40, 30, 3), (1, 30, 20)])
def test_thin_scans(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    label = np.full(shape, 2, np.uint8)
    overlay_png(tmp_path / "case.png", np.zeros(shape, np.int16), label, label, (1.0, 1.0, 5.0), "thin")
    assert pixels(tmp_path / "case.png").shape[1] == 1300


def test_same_input_same_bytes(tmp_path: Path) -> None:
    image, label = scan()
    dices = {"a": {"liver": 0.9, "tumour": math.nan}, "b": {"liver": 0.8, "tumour": 0.5}}
    for name in ("one", "two"):
        overlay_png(tmp_path / f"{name}.png", image, label, label, SPACING_MM, "case")
        dice_plot_png(tmp_path / f"{name}-dice.png", dices)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert (tmp_path / "one-dice.png").read_bytes() == (tmp_path / "two-dice.png").read_bytes()
    assert b"Software" not in (tmp_path / "one.png").read_bytes()


def test_dice_plot_skips_undefined_values(tmp_path: Path) -> None:
    nothing = {"a": {"liver": 0.9, "liver_only": 0.88, "tumour": math.nan}}
    dice_plot_png(tmp_path / "nan.png", nothing)
    assert not len(coloured(pixels(tmp_path / "nan.png"), TUMOUR))
    dice_plot_png(tmp_path / "some.png", {**nothing, "b": {"liver": 0.7, "liver_only": 0.7, "tumour": 0.4}})
    assert len(coloured(pixels(tmp_path / "some.png"), TUMOUR)) > 20
    dice_plot_png(tmp_path / "empty.png", {})
    assert (tmp_path / "empty.png").stat().st_size > 1000
