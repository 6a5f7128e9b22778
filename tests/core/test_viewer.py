"""The viewer: what it packs is what it was given, and driven in a browser it shows it in the right place."""

import base64
import json
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from liverseg_core.evaluation.case_view import CaseView
from liverseg_core.page import html_page
from liverseg_core.report.viewer import (
    ASSETS,
    HIGHEST_HU,
    LOWEST_HU,
    STEP_HU,
    TOP,
    Packed,
    coarser,
    fit,
    pack,
    stack_of,
    viewer_html,
)

SHAPE, SPACING_MM = (40, 30, 20), (2.0, 3.0, 4.0)
MARK = (37, 15, 10)
"""A bright voxel on the patient's right."""
BOTH, MISSED, INVENTED, LIVER, NOTHING = (26, 15, 10), (22, 15, 10), (29, 15, 10), (18, 8, 10), (6, 6, 10)
SAYS = "#viewer output"
YELLOW, BLUE, VERMILION = (255, 213, 0), (86, 180, 233), (255, 106, 19)


def view(case: str = "liver_1", referenced: bool = True) -> CaseView:
    """A liver with a tumour, which the prediction has two voxels further to the right; all of it body."""
    image = np.full(SHAPE, 40, np.int16)
    image[MARK] = 2000
    liver = np.zeros(SHAPE, np.uint8)
    liver[14:35, 5:25, 5:16] = 1
    reference, prediction = liver.copy(), liver.copy()
    reference[21:29, 11:20, 8:13] = 2
    prediction[24:32, 11:20, 8:13] = 2
    return CaseView(case, image, reference if referenced else None, prediction, SPACING_MM, {})


def unpacked(packed: Packed) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Greys, labels and facts, as the script reads them."""
    facts = json.loads(packed.facts)
    values = np.frombuffer(zlib.decompress(base64.b64decode(packed.voxels)), np.uint8)
    steps, labels = values.reshape(2, -1)
    shape = facts["shape"]
    return np.cumsum(steps, dtype=np.uint8).reshape(shape, order="F"), labels.reshape(shape, order="F"), facts


def test_what_is_packed_comes_back() -> None:
    case = view()
    assert case.reference is not None
    greys, labels, facts = unpacked(pack(stack_of(case)))
    assert facts["shape"] == [*SHAPE]
    assert np.array_equal(labels & 3, case.prediction)
    assert np.array_equal(labels >> 2, case.reference)
    wanted = np.clip(case.image, LOWEST_HU, LOWEST_HU + 255 * STEP_HU)
    assert np.abs(LOWEST_HU + STEP_HU * greys.astype(int) - wanted).max() <= STEP_HU / 2
    assert case.reference[tuple(facts["point"])] == 2


def test_the_ends_of_the_greys_stand_for_nothing_else() -> None:
    """Also where voxels are averaged: a mean of air and fat is not all air."""
    hu = np.arange(-400, 800, dtype=np.int16)
    image = np.broadcast_to(hu[:, None, None], (hu.size, 2, 2))
    label = np.ones(image.shape, np.uint8)
    stack = stack_of(CaseView("a", image, label, label, (1.0,) * 3, {}))
    greys = stack.grey[:, 0, 0].astype(int)
    np.testing.assert_array_equal(greys == 0, hu <= LOWEST_HU)
    np.testing.assert_array_equal(greys == TOP, hu >= HIGHEST_HU)
    between = (hu > LOWEST_HU) & (hu < HIGHEST_HU)
    assert np.abs(LOWEST_HU + STEP_HU * greys - hu)[between].max() < STEP_HU
    coarse = coarser(stack, 4.0)
    pure = [set(greys[4 * at : 4 * at + 4].tolist()) for at in range(hu.size // 4)]
    for at, found in enumerate(coarse.grey[1:-1, 0, 0].tolist(), 1):  # the filter reaches a voxel further
        assert found != 0 or 0 in pure[at], at
        assert found != TOP or TOP in pure[at], at


def test_only_the_body_around_the_labels_is_kept() -> None:
    image = np.full((60, 64, 90), -1000, np.int16)
    image[10:50, 12:40] = 30
    image[:, 1] = 60  # the table: a line in every slice
    label = np.zeros(image.shape, np.uint8)
    label[8:30, 20:30, 60:70] = 1
    stack = stack_of(CaseView("a", image, label, label, (1, 1, 5), {}))
    greys, labels, _ = unpacked(pack(stack))
    assert greys.shape == (42, 39, 20), "25 mm above and below; the liver, though it leaves the body"
    assert np.count_nonzero(labels & 3) == np.count_nonzero(label)


def test_coarser_voxels_fill_the_same_space() -> None:
    stack = stack_of(view())
    coarse = coarser(stack, 5.0)
    for n, mm, before, spacing in zip(coarse.grey.shape, coarse.spacing_mm, SHAPE, SPACING_MM, strict=True):
        assert n * mm == pytest.approx(before * spacing)
        assert mm >= 4.0
    assert coarse.labels[coarse.point] >> 2 == 2
    assert coarser(stack, 1.0) is stack


def test_cases_become_coarser_until_they_fit() -> None:
    rng = np.random.default_rng(0)
    case = view()
    noisy = CaseView(
        "a", rng.normal(0, 60, SHAPE).astype(np.int16), case.reference, case.prediction, (1,) * 3, {}
    )
    stacks = [stack_of(noisy)] * 2
    empty = len(viewer_html(())) + sum(asset.stat().st_size for asset in ASSETS)
    rooms = [empty + size for size in (40_000, 8_000, 3_000, 1_000, 10)]
    found = [fit(stacks, room) for room in rooms]
    assert [len(packed) for packed in found] == [2, 2, 2, 1, 0]
    for packed, room in zip(found, rooms, strict=True):
        page = len(viewer_html(packed)) + sum(asset.stat().st_size for asset in ASSETS)
        assert not packed or page <= room
    assert found[0][0].spacing_mm < found[1][0].spacing_mm < found[2][0].spacing_mm


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with two cases, the second without a reference."""
    packed = [pack(stack_of(view())), pack(stack_of(view("<script>alert(1)</script>", referenced=False)))]
    path = tmp_path_factory.mktemp("viewer") / "page.html"
    path.write_text(html_page("cases", [viewer_html(packed)], *ASSETS))
    return path.as_uri()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, opened; nothing may be said on the console."""
    context = browser.new_context(viewport={"width": 900, "height": 900})
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(address)
    shows(page, "")
    yield page
    context.close()
    assert [message for message in said if not message.startswith("Canvas2D: Multiple readback")] == []


def shows(page: Any, what: str) -> None:
    """Wait until the canvas says that it does."""
    page.locator(f'canvas[aria-label*="{what}"]' if what else "canvas[aria-label]").wait_for()


PLANES = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}


def pixel(page: Any, voxel: tuple[int, int, int], plane: str = "axial") -> np.ndarray:
    """The colour in the middle of a voxel; columns and rows run against the axes."""
    across, up = ((SHAPE[axis] - 0.5 - voxel[axis]) / SHAPE[axis] for axis in PLANES[plane])
    script = """([across, up]) => { const canvas = document.querySelector("canvas");
        return [...canvas.getContext("2d").getImageData(
            across * canvas.width, up * canvas.height, 1, 1).data].slice(0, 3); }"""
    return np.array(page.evaluate(script, [across, up]))


def picture(page: Any) -> str:
    return str(page.evaluate("document.querySelector('canvas').toDataURL()"))


def apart(colour: np.ndarray, wanted: tuple[int, int, int]) -> float:
    return float(np.abs(colour - wanted).max())


def test_tumour_is_yellow_and_liver_purple(page: Any) -> None:
    assert "predicted tumour, reference tumour" in page.locator(SAYS).inner_text()
    red, green, blue = pixel(page, BOTH)
    assert red > 150
    assert green > 150
    assert blue < 80
    red, green, blue = pixel(page, LIVER)
    assert min(red, blue) - green > 20
    red, green, blue = pixel(page, NOTHING)
    assert red == green == blue
    assert 115 < red < 135, "40 HU in the middle of the window"


def test_errors_are_where_the_labels_differ(page: Any) -> None:
    before = {place: pixel(page, place) for place in (BOTH, LIVER, NOTHING)}
    page.get_by_label("errors").check()
    assert apart(pixel(page, MISSED), BLUE) < 45
    assert apart(pixel(page, INVENTED), VERMILION) < 45
    for place, colour in before.items():
        assert np.array_equal(pixel(page, place), colour), place


def test_prediction_and_outlines_can_be_hidden(page: Any) -> None:
    with_both = picture(page)
    page.get_by_label("reference, outlined").uncheck()
    without_outlines = picture(page)
    assert without_outlines != with_both
    page.get_by_label("prediction, filled").uncheck()
    red, green, blue = pixel(page, BOTH)
    assert red == green == blue, "the scan alone"
    page.get_by_label("prediction, filled").check()
    assert picture(page) == without_outlines
    page.get_by_label("Opacity").fill("0")
    assert len(set(pixel(page, BOTH).tolist())) == 1


def slice_shown(page: Any) -> int:
    return int(page.locator("canvas").get_attribute("aria-label").split("slice ")[1].split(" ")[0])


def test_slices_follow_keys_wheel_slider_and_drag(page: Any) -> None:
    canvas, start = page.locator("canvas"), slice_shown(page)
    canvas.focus()
    for key, expected in (
        ("ArrowUp", start + 1), ("ArrowLeft", start), ("Home", 1), ("PageUp", 11), ("End", 20),
    ):  # fmt: skip
        page.keyboard.press(key)
        assert slice_shown(page) == expected, key
    assert "predicted background" in page.locator(SAYS).inner_text()
    page.locator("[name=slice]").fill("9")
    assert slice_shown(page) == 10
    before = picture(page)
    canvas.hover()
    page.mouse.wheel(0, 80)
    shows(page, "slice 8 ")
    assert picture(page) != before
    page.mouse.down()
    page.mouse.move(*(at + 40 * (axis == 0) for axis, at in enumerate(middle(canvas))))
    page.mouse.up()
    assert slice_shown(page) == 18


def middle(canvas: Any) -> tuple[float, float]:
    box = canvas.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_planes_go_through_what_was_clicked(page: Any) -> None:
    canvas = page.locator("canvas")
    box = canvas.bounding_box()
    across, up = ((SHAPE[axis] - 0.5 - MARK[axis]) / SHAPE[axis] for axis in PLANES["axial"])
    page.locator("[name=slice]").fill(str(MARK[2]))
    canvas.click(position={"x": across * box["width"], "y": up * box["height"]})
    assert "≥ 720 HU here" in page.locator(SAYS).inner_text(), "the brightest that is stored"
    for key, plane in (("3", "sagittal"), ("2", "coronal"), ("1", "axial")):
        page.keyboard.press(key)
        assert slice_shown(page) == MARK[{"sagittal": 0, "coronal": 1, "axial": 2}[plane]] + 1
        assert pixel(page, MARK, plane).min() > 150
        shown = canvas.bounding_box()
        wide, high = (SHAPE[axis] * SPACING_MM[axis] for axis in PLANES[plane])
        assert shown["width"] / shown["height"] == pytest.approx(wide / high, rel=0.02)
    assert across < 0.1, "the patient's right is on the left"


def test_windows_and_other_cases(page: Any) -> None:
    before = pixel(page, NOTHING)
    page.get_by_label("Window").select_option(index=1)
    assert pixel(page, NOTHING)[0] < before[0] - 30
    page.locator("[name=case]").select_option(index=1)
    shows(page, "<script>")
    assert page.get_by_label("errors").is_disabled()
    assert "reference" not in page.locator(SAYS).inner_text()
    assert pixel(page, INVENTED)[0] > 150


def test_a_phone_has_room_and_targets(browser: Any, address: str) -> None:
    context = browser.new_context(
        viewport={"width": 360, "height": 740}, device_scale_factor=2, is_mobile=True, has_touch=True
    )
    page = context.new_page()
    page.goto(address)
    shows(page, "")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    heights = page.evaluate("[...document.querySelectorAll('#viewer label')].map(l => l.offsetHeight)")
    assert min(heights) >= 40
    page.locator("canvas").tap()
    assert apart(pixel(page, BOTH), YELLOW) < 120
    context.close()
