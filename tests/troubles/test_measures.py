"""Figures that could mislead: each beside what it must be, worked out anew by other means."""

import io
import json
import math
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import ndimage, spatial

from flows.commands.score_tables import case_scores, lesion_table, surface_table
from liverseg_core.arrays import Spacing
from liverseg_core.evaluation import glossary, nearest
from liverseg_core.evaluation.lesion_matching import find_lesions
from liverseg_core.evaluation.lesions import MEASURED
from liverseg_core.evaluation.measures import score_case, summarise
from liverseg_core.evaluation.official import all_distances, assd_lits_mm, nsd
from liverseg_core.evaluation.overlap import Overlap
from liverseg_core.evaluation.surface import surface_distances
from liverseg_core.evaluation.transform import nearest_mm
from liverseg_core.inference.findings import findings
from liverseg_core.report.results import Results
from liverseg_core.report.tables import case_table
from liverseg_core.report.tables import lesion_table as lesion_rows
from tasks.registry.publish import _final

ROWS: dict[str, tuple[str, str]] = {
    "1.11": (
        "a liver that leaves the scan, and a prediction that lacks the last slice",
        "every distance is at most one slice: 5, 5 and 1.04 mm for a box with slices of 5 mm",
    ),
    "1.16": (
        "lesions touched but not matched, at a tumour Dice of .044",
        "0 of 2 found, by one definition, named alike in terminal, report, card and MLflow; one glossary",
    ),
    "2.13": (
        "labels of noise: millions of surface voxels, hundreds of thousands of lesions",
        "scored and summed up in time linear in their voxels",
    ),
    "4 measures": (
        "RVD beside the LiTS notebook's; RMSD",
        "its sign and denominator are said; RMSD is there",
    ),
    "5 ASSD": ("the LiTS programme's ASSD", "assd_lits_mm, by the 18-neighbourhood, the cut being surface"),
    "5 NSD": (
        "the Decathlon's surface measure",
        "nsd_<t>mm equals MONAI's use_subvoxels; the tolerance is set",
    ),
}
SLICES_MM = (1.0, 1.0, 5.0)


def bodies() -> dict[str, np.ndarray]:
    """Bodies that the last slice cuts off."""
    x, y, z = np.indices((60, 60, 12))
    round_mm = np.hypot(x - 29.5, y - 29.5)
    return {
        "box": (np.abs(x - 29.5) < 25) & (np.abs(y - 29.5) < 25) & (z >= 3),
        "cylinder": (round_mm < 24) & (z >= 2),
        "ellipsoid": (round_mm / 26) ** 2 + ((z - 9) / 7) ** 2 < 1,
    }


@pytest.mark.trouble("1.11")
@pytest.mark.parametrize("body", bodies())
@pytest.mark.parametrize("axis", range(3))
def test_a_missing_last_slice_is_one_slice_away(body: str, axis: int) -> None:
    reference = bodies()[body].swapaxes(axis, 2)
    spacing_mm = [1.0, 1.0, 1.0]
    spacing_mm[axis] = 5.0
    for end in (slice(-1, None), slice(0, 1)):
        if end.start == 0:
            reference = np.flip(reference, axis)
        prediction = reference.copy()
        prediction.swapaxes(axis, 2)[:, :, end] = False
        for pair in ((prediction, reference), (reference, prediction)):
            found = surface_distances(*pair, (spacing_mm[0], spacing_mm[1], spacing_mm[2]))
            assert found.mssd_mm == found.hd95_mm == 5.0
            assert found.assd_mm is not None
            assert found.assd_mm < 2
    if body == "box":
        assert found.assd_mm == pytest.approx(1.04, abs=0.005)


@pytest.mark.trouble("1.11")
def test_a_cut_that_both_have_hardly_counts() -> None:
    """Beside the distances to surfaces without the cut, by scipy."""
    reference = bodies()["ellipsoid"]
    prediction = ndimage.shift(reference.astype(float), (2, 0, 0), order=0) > 0.5
    found = surface_distances(prediction, reference, SLICES_MM)
    edges = [
        np.argwhere(mask ^ ndimage.binary_erosion(mask, border_value=1)) * SLICES_MM
        for mask in (prediction, reference)
    ]
    uncut = np.concatenate([spatial.cKDTree(to).query(one)[0] for one, to in (edges, edges[::-1])])
    assert found.mssd_mm == uncut.max() == 2
    assert found.assd_mm == pytest.approx(uncut.mean(), rel=0.1)


def lits_assd(prediction: np.ndarray, reference: np.ndarray, spacing_mm: Spacing) -> float:
    """As the LiTS programme defines it: what an 18-neighbour erosion takes away, and nearest neighbours."""
    neighbours = ndimage.generate_binary_structure(3, 2)
    edges = [
        np.argwhere(mask ^ ndimage.binary_erosion(mask, neighbours)) * spacing_mm
        for mask in (prediction, reference)
    ]
    there, back = (spatial.cKDTree(to).query(one)[0] for one, to in (edges, edges[::-1]))
    return float((there.sum() + back.sum()) / (there.size + back.size))


def pairs(count: int) -> list[tuple[np.ndarray, np.ndarray, Spacing]]:
    """Random bodies and noise, at random spacings; the volume cuts most of them off."""
    rng = np.random.default_rng(13)
    found = []
    for number in range(count):
        shape = rng.integers(6, 26, 3)
        blur, push = rng.uniform(0, 3), rng.uniform(0, 1.5)
        noise = rng.standard_normal((2, *shape))
        noise[1] = noise[0] + push * noise[1]
        one, other = (ndimage.gaussian_filter(part, blur) > 0.01 for part in noise)
        if number % 3 == 0:
            one[:, :, -2:], other[0] = False, True
        x, y, z = rng.uniform(0.4, 5, 3).round(2).tolist()
        found.append((one, other, (x, y, z)))
    return found


@pytest.mark.trouble("5 ASSD")
def test_lits_assd_is_that_of_its_programme() -> None:
    """By scipy, on hand-made masks: a corner, an edge that only the 18-neighbourhood sees, a cut."""
    block, dented, cut = np.zeros((3, 9, 9, 9), np.bool_)
    block[2:7, 2:7, 2:7] = dented[2:7, 2:7, 2:7] = True
    dented[2, 2, 3:6] = False  # an edge is gone: its neighbours' neighbours become surface
    cut[2:7, 2:7, 4:] = True
    spacing_mm = (0.7, 0.9, 2.5)
    for one, other in ((block, dented), (block, cut), (dented, cut)):
        assert assd_lits_mm(one, other, spacing_mm) == pytest.approx(lits_assd(one, other, spacing_mm))
    for one, other, spacing in pairs(12):
        assert assd_lits_mm(one, other, spacing) == pytest.approx(lits_assd(one, other, spacing))


@pytest.mark.trouble("5 NSD")
def test_nsd_equals_that_of_the_decathlon() -> None:
    from monai.metrics import compute_surface_dice

    rng, cuts = np.random.default_rng(5), 0
    for one, other, spacing_mm in pairs(36):
        tolerance_mm = float(rng.uniform(0.2, 8))
        expected = compute_surface_dice(
            *(torch.from_numpy(mask[None, None]) for mask in (one, other)),
            class_thresholds=[tolerance_mm],
            include_background=True,
            spacing=spacing_mm,
            use_subvoxels=True,
        ).item()
        assert nsd(one, other, spacing_mm, tolerance_mm) == pytest.approx(expected, abs=1e-3)
        cuts += bool(one[:, :, 0].any() or other[0].any())
    assert cuts > 20
    nothing = np.zeros_like(one)
    assert nsd(one, nothing, spacing_mm, 2.0) == 0
    assert nsd(nothing, nothing, spacing_mm, 2.0) is None


@pytest.mark.trouble("4 measures")
def test_rvd_and_rmsd() -> None:
    """3 voxels for 5: −.4 of the reference; the LiTS notebook has +.667 of the prediction."""
    overlap = Overlap(prediction=3, reference=5, both=3)
    assert overlap.rvd == pytest.approx(-0.4)
    assert pytest.approx(-overlap.rvd) != (5 - 3) / 3
    one, other = np.zeros((2, 9, 9, 9), np.bool_)
    one[4, 4, 4], other[4, 4, 4:7] = True, True
    found = all_distances(one, other, (1, 1, 2.5), 2.0)
    assert found.rmsd_mm == pytest.approx(math.sqrt((2.5**2 + 5**2) / 4))


# One definition of found


def touching() -> tuple[np.ndarray, np.ndarray]:
    """Two lesions of 216 voxels, each grazed by a large false one: tumour Dice below .05."""
    prediction, reference = np.zeros((2, 40, 40, 20), np.uint8)
    prediction[2:38, 2:38, 2:18] = reference[2:38, 2:38, 2:18] = 1
    for at in (4, 28):
        reference[at : at + 6, 6:12, 6:12] = 2
        prediction[at : at + 6, 11:37, 6:18] = 2
    return prediction, reference


@pytest.mark.trouble("1.16")
def test_touched_is_not_found_anywhere() -> None:
    score = score_case("a", *touching(), (1, 1, 1))
    record, summary = score.record(), summarise([score])
    assert record["tumour"]["dice"] < 0.05
    touched = summary["lesions"]["iou_0"]["all"]
    assert (touched["detected"], touched["reference"]) == (2, 2)
    terminal = _printed(case_scores([record])) + _printed(lesion_table(summary))
    page = "".join([*case_table([record], {}), *lesion_rows(summary["lesions"])])
    label = glossary.LESIONS["found"].label
    assert label == "lesions found (IoU > 0.5)"
    assert label in terminal
    assert label.replace(">", "&gt;") in page
    for text in (terminal, page):
        assert "0 of 2" in text
        assert all("touched" in text[: found.start()] for found in re.finditer("2 of 2", text))
    named = dict(_final(summary))
    assert named["evaluate/lesions_iou_50/recall"] == 0
    assert not any(name.startswith("evaluate/lesions") and "iou_50" not in name for name in named)


@pytest.mark.trouble("1.16")
def test_the_report_and_the_card_call_found_what_the_table_does() -> None:
    from liverseg_core.report import card, page

    score = score_case("a", *touching(), (1, 1, 1))
    results = Results([score.record()], summarise([score]))
    rows = "\n".join(card._lesions(results))
    assert "found (IoU > 0.5) | touched (any voxel shared) | predicted | of them false (IoU > 0.5)" in rows
    assert "| All sizes | 2 | 0 | 2 | 2 | 2 |" in rows
    assert "iou_0" not in Path(page.__file__).read_text()


def _printed(table: object) -> str:
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


@pytest.mark.trouble("1.16")
def test_one_glossary() -> None:
    """The page is what the code says, and every figure that is printed or logged is in it."""
    written = (Path(__file__).parents[2] / "docs" / "measures.md").read_text()
    assert written == glossary.page(), "python -m liverseg_core.evaluation.glossary > docs/measures.md"
    score = score_case("a", *touching(), (1, 1, 1), nsd_tolerance_mm=2.0)
    summary = summarise([score])
    for name in {*summary["liver"]["spread"], *(group.name for group in glossary.GROUPS)}:
        assert f"`{name}`" in written
        assert name.startswith("liver") or name == "tumour" or glossary.term(name).name == name
    for name, _ in _final(summary):
        assert (
            f"`{name.rpartition('/')[2]}`" in written
            or f"…/{name.rpartition('/')[2]}`" in written
            or (f"`{name}`" in written)
        )
    headings = _printed(surface_table(summary))
    assert all(term.title in headings for term in glossary.measures().values() if "Dice" not in term.title)


# Noise


@pytest.mark.trouble("2.13")
def test_distances_of_noise_are_exact_and_numba_is_for_noise_alone() -> None:
    """All three ways give one answer: looking around, comparing all pairs, the distance transform."""
    rng = np.random.default_rng(3)
    for share in (0.002, 0.05, 0.4):
        shape = tuple(rng.integers(5, 30, 3).tolist())
        x, y, z = rng.uniform(0.3, 4, 3).round(2).tolist()
        one, to = (rng.random(shape) < share for _ in range(2))
        one[0, 0, 0] = to[-1, -1, -1] = True
        numbers = np.flatnonzero(nearest.flat(one))
        places, others = (np.argwhere(mask.T)[:, ::-1] * (x, y, z) for mask in (one, to))
        expected = spatial.cKDTree(others).query(places)[0]
        assert nearest.distances_mm(one, to, (x, y, z)) == pytest.approx(expected, abs=1e-9)
        assert nearest_mm(numbers, to, (x, y, z)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.trouble("2.13")
def test_the_work_for_noise_grows_with_its_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask of noise far from the other: the looks that are allowed, then the transform, never all pairs."""
    rng = np.random.default_rng(4)
    prediction, reference = np.zeros((2, 96, 96, 48), np.bool_)
    prediction[30:], reference[:3, :3, :3] = rng.random((66, 96, 48)) < 0.3, True
    monkeypatch.setattr(nearest, "PAIRS", 1 << 16)
    all_distances(prediction, reference, (0.7, 0.7, 2.5), 2.0)  # what is compiled is compiled
    begun = time.process_time()
    found = all_distances(prediction, reference, (0.7, 0.7, 2.5), 2.0)
    assert time.process_time() - begun < 3, "some .3 s"
    expected = spatial.cKDTree(np.argwhere(reference) * (0.7, 0.7, 2.5)).query(
        np.argwhere(prediction) * (0.7, 0.7, 2.5)
    )[0]
    assert found.mssd_mm == pytest.approx(expected.max())


@pytest.mark.trouble("2.13")
def test_many_lesions_are_counted_and_matched_in_linear_time() -> None:
    rng = np.random.default_rng(5)
    tumour = rng.random((96, 96, 48)) < 0.02
    begun = time.process_time()
    found = findings(tumour.astype(np.uint8) * 2, (0.7, 0.7, 2.5))
    lesions = find_lesions(tumour, tumour, (0.7, 0.7, 2.5))
    assert time.process_time() - begun < 8, "some .5 s"
    assert found["lesions"] > 6_000
    assert len(lesions.matches) == found["lesions"]
    measured = [match.assd_mm for match in lesions.matches if match.assd_mm is not None]
    assert measured == [0.0] * MEASURED
    assert json.loads(json.dumps(lesions.summary()))["matched"]["n"] == found["lesions"]


@pytest.mark.trouble("2.13")
def test_the_longest_diameter_is_of_any_two_voxels() -> None:
    rng = np.random.default_rng(6)
    for _ in range(40):
        label = (rng.random((*rng.integers(1, 12, 2), 1)) < rng.choice([0.3, 0.8])).astype(np.uint8) * 2
        x_mm, y_mm = rng.uniform(0.4, 2, 2)
        parts, count = ndimage.label(label[..., 0])
        longest = 0.0
        for number in range(1, count + 1):
            places = np.argwhere(parts == number) * (x_mm, y_mm)
            longest = max(longest, float(spatial.distance.cdist(places, places).max()))
        found = findings(label, (x_mm, y_mm, 1.0))["largest_diameter_mm"]
        assert found == pytest.approx(longest + math.sqrt(x_mm * y_mm) if count else 0, abs=0.006)
