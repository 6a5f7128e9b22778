"""Plots of the report: what their words and dots say, whatever the cases, and that nothing is dropped."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as Xml

import numpy as np
import pytest

from liverseg_core.evaluation.measures import score_case
from liverseg_core.report.detection import wilson
from liverseg_core.report.plots import lesions_plot, measures_plot, paired_plot, volumes_plot
from liverseg_core.report.sources import Rival
from liverseg_core.report.svg import Scale, number, shorten

SVG = "{http://www.w3.org/2000/svg}"
SPACING_MM = (2.0, 2.0, 2.5)
HOSTILE = 'ward <3> & "sons" $x_1$ ' + "of a very long hospital name " * 3
Records = Sequence[Mapping[str, Any]]


def record(case: str, tumour: int, predicted: int, shift: int = 0) -> dict[str, Any]:
    """A liver of 16 × 16 × 16 voxels, predicted some voxels off, with cubes of tumour of these edges."""
    reference, prediction = np.zeros((2, 30, 24, 20), np.uint8)
    reference[4:20, 4:20, 2:18] = 1
    prediction[4 + shift : 20 + shift, 4:20, 2:18] = 1
    reference[8 : 8 + tumour, 8 : 8 + tumour, 6 : 6 + tumour] = 2
    prediction[8 : 8 + predicted, 8 : 8 + predicted, 6 : 6 + predicted] = 2
    return score_case(case, prediction, reference, SPACING_MM).record()


@pytest.fixture(scope="module")
def scores() -> Records:
    sizes = ((3, 3, 0), (8, 6, 1), (0, 0, 2), (5, 5, 0), (0, 4, 1), (3, 0, 4))
    return [record(f"case_{i}", *size) for i, size in enumerate(sizes)]


def words(svg: str) -> list[str]:
    return [element.text or "" for element in Xml.fromstring(svg).iter(f"{SVG}text")]


def titles(svg: str) -> list[str]:
    return [element.text or "" for element in Xml.fromstring(svg).iter(f"{SVG}title")]


def specks(svg: str) -> int:
    """Dots that are drawn together in paths."""
    return sum(path.get("d", "").count("h0") for path in Xml.fromstring(svg).iter(f"{SVG}path"))


def undefined(scores: Records) -> int:
    measures = ("dice", "surface_dice_2mm", "voe", "hd95_mm", "assd_mm", "mssd_mm", "rvd")
    groups = ("liver", "liver_only", "tumour")
    return sum(score[group][name] is None for score in scores for group in groups for name in measures)


def test_every_defined_value_is_a_dot_and_the_others_are_counted(scores: Records) -> None:
    plot = measures_plot(scores, None)
    dice = [title for title in titles(plot) if re.fullmatch(r"case_\d: \d\.\d{3}", title)]
    defined = 7 * 3 * len(scores) - undefined(scores)
    dots = sum(
        score[group]["dice"] is not None for score in scores for group in ("liver", "liver_only", "tumour")
    )
    assert specks(plot) == defined - dots
    assert len(dice) >= dots
    counts = [int(found[1]) for told in words(plot) if (found := re.fullmatch(r"(\d+) undefined", told))]
    assert sum(counts) == undefined(scores) > 0


def test_worst_cases_and_means_are_named(scores: Records) -> None:
    told = words(measures_plot(scores, None))
    livers = [score["liver"]["dice"] for score in scores]
    assert f"worst case_5 {min(livers):.3f}" in told
    assert f"{np.mean(livers):.3f}" in told
    rvd = min(
        (s for s in scores if s["liver"]["rvd"] is not None), key=lambda s: -abs(s["tumour"]["rvd"] or 0)
    )
    assert f"worst {rvd['case']} −1.000" in told, "the farthest from 0, with its sign"


def test_rival_stands_beside_in_grey(scores: Records) -> None:
    better = [record(f"case_{i}", 6, 6) for i in range(4)]
    alone, beside = measures_plot(scores, None), measures_plot(scores, Rival("version <3> & more", better))
    assert "version <3> & more" in words(beside)
    assert "1.000" in words(beside), "its mean Dice"
    assert specks(beside) - specks(alone) == 4 * 3 * 7
    assert "grey: 0 undefined" in words(beside), "where as many as ours would be taken for granted"


def test_lesions_are_counted_by_size_with_intervals(scores: Records) -> None:
    plot = lesions_plot(scores)
    told = words(plot)
    assert told[0] == "Lesions by size, 6 cases"
    assert "4 in the reference, 4 predicted" in told, "of all sizes"
    assert "2 of 4" in told, "6³ of 8³ voxels are an IoU of 0.42, and one lesion is missed"
    assert told.count("none") == 1, "nothing is predicted of the largest"
    intervals = [path for path in Xml.fromstring(plot).iter(f"{SVG}path") if path.get("stroke-width") == "5"]
    assert len(intervals) == sum(" of " in text for text in told)


def test_wilson_against_its_equation() -> None:
    for right, whole in ((0, 1), (1, 1), (3, 4), (50, 100), (0, 40)):
        low, high = wilson(right, whole)
        assert 0 <= low <= right / whole <= high <= 1
        for end in {low, high} - {0.0, 1.0}:  # each end is as far off as 1.96 of its own deviations
            assert (right / whole - end) ** 2 == pytest.approx(
                1.959964**2 * end * (1 - end) / whole, rel=1e-6
            )


def test_agreement_of_volumes(scores: Records) -> None:
    plot = volumes_plot(scores)
    told = words(plot)
    held = [score["tumour"] for score in scores if score["case"] != "case_2"]
    differences = [group["volume_ml"] - group["reference_volume_ml"] for group in held]
    half = 1.96 * np.std(differences, ddof=1)
    ends = [number(np.mean(differences) + off, sign=True) for off in (-half, half)]
    assert "5 cases, 1 without tumour in either label left out" in told
    assert f"bias {number(np.mean(differences), sign=True)}, 95 % limits {ends[0]} to {ends[1]} ml" in told
    assert len(titles(plot)) == 5 + 6, "a dot for each tumour and each liver"
    assert f"farthest off: case_1 {number(min(differences), sign=True)} ml" in told
    few = words(volumes_plot(scores[:2]))
    assert any("limits need 3 cases" in text for text in few)


def test_volumes_over_decades_are_on_a_log_scale() -> None:
    cases = [{**record(f"c{i}", 3, 3)} for i in range(6)]
    for case, ml in zip(cases, (0.1, 1, 10, 100, 1000, 3000), strict=True):
        case["tumour"] = {**case["tumour"], "volume_ml": ml * 1.1, "reference_volume_ml": ml}
    plot = volumes_plot(cases)
    assert "mean of predicted and reference, ml, log scale" in words(plot)
    xs = sorted(
        float(c.get("cx", 0)) for c in Xml.fromstring(plot).iter(f"{SVG}circle") if c.get("fill") == "#ffd500"
    )
    assert min(np.diff(xs)) > 8, "the small ones are told apart"


def test_differences_to_a_rival(scores: Records) -> None:
    worse = [record(f"case_{i}", 5, 3, 5) for i in range(5)]
    plot = paired_plot(scores, Rival("version 3", worse))
    told = words(plot)
    assert told[0] == "Dice, this model − version 3"
    assert told.count("5 cases, 1 left out: not scored or not defined in both") == 2
    assert any(re.fullmatch(r"mean \+0\.\d{4} \(95 %: .+\), better", text) for text in told)
    assert sum(": " in title for title in titles(plot)) == 10
    same = words(paired_plot(scores, Rival("itself", scores)))
    assert sum("no clear difference" in text for text in same) == 2


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("none", lambda: []),
        ("one", lambda: [record("only", 5, 4)]),
        ("no tumour", lambda: [record(f"c{i}", 0, 0, i) for i in range(3)]),
        ("nothing defined", lambda: [hollow(f"c{i}", value) for i, value in enumerate((None, float("nan")))]),
        ("hostile names", lambda: [record(f"{HOSTILE} {i}", 5, i + 2) for i in range(4)]),
        ("many", lambda: [{**record("c", 6, 5, 1), "case": f"liver_{i:03d}"} for i in range(200)]),
    ],
)
def test_any_set_of_cases_is_drawn(name: str, make: Callable[[], Records]) -> None:
    scores = make()
    rival = Rival(f"rival {HOSTILE}", scores)
    for draw in (measures_plot, paired_plot):
        assert draw(scores, rival) == draw(scores, rival)
    plots = (
        measures_plot(scores, rival),
        paired_plot(scores, rival),
        lesions_plot(scores),
        volumes_plot(scores),
    )
    for plot in (*plots, measures_plot(scores, None)):
        assert not re.search(r"nan|inf\b|None", re.sub(r"<(title|text|style).*?</\1>", "", plot)), name
        assert len(plot) < 300_000
        root = Xml.fromstring(plot)
        _, _, wide, high = map(float, root.get("viewBox", "").split())
        for element in root.iter(f"{SVG}text"):
            x, y = float(element.get("x", 0)), float(element.get("y", 0))
            length = 0.58 * float(element.get("font-size", 0)) * len(element.text or "")
            left = x - length * {"end": 1.0, "middle": 0.5}.get(element.get("text-anchor", ""), 0)
            assert 0 <= y <= high, (name, element.text)
            assert -4 <= left <= left + length <= wide + 4, (name, element.text)


def hollow(case: str, value: float | None) -> dict[str, Any]:
    """A record with empty labels, its undefined measures as null or NaN."""
    nothing = np.zeros((4, 4, 4), np.uint8)
    found = score_case(case, nothing, nothing, SPACING_MM).record()
    for group in ("liver", "liver_only", "tumour"):
        found[group] = {key: value if held is None else held for key, held in found[group].items()}
    return found


def test_scale_bends_monotonically_and_names_round_values() -> None:
    scale = Scale(-5, 5000, 0, 400, 2)
    places = [scale(v) for v in (-5, -1, 0, 0.5, 1, 10, 100, 5000)]
    assert places == sorted(places)
    assert (places[0], places[-1]) == (0, 400)
    assert {0, 10, 100, 1000} <= set(scale.ticks(30))
    assert Scale(0.87, 1, 0, 400).ticks(80) == pytest.approx([0.9, 0.95, 1.0])


def test_numbers_and_names_are_short() -> None:
    assert [number(v) for v in (-0.001, 1.234, 12.34, 1234)] == ["0.00", "1.23", "12.3", "1234"]
    assert number(-2.5, 1, sign=True) == "−2.5"
    assert number(0.0, 2, sign=True) == "0.00"
    assert shorten("liver_103", 100) == "liver_103"
    assert shorten("a" * 30 + "_103", 100).endswith("_103")
    assert len(shorten("a" * 99, 100)) <= 14
