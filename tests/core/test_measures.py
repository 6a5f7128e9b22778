"""Measures of a case and of a set: values derived by hand, the empty mask, merging, files and folders."""

import json
import math
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from liverseg_core.errors import LiversegError
from liverseg_core.evaluation import overlap as overlap_module
from liverseg_core.evaluation.glossary import measures
from liverseg_core.evaluation.lesion_matching import find_lesions
from liverseg_core.evaluation.measures import (
    GROUPS,
    BurdenError,
    CaseScore,
    Overlap,
    confusion,
    count,
    score_case,
    summarise,
)
from liverseg_core.evaluation.official import all_distances
from liverseg_core.evaluation.score import score

VOXEL_MM = (0.5, 0.8, 2.5)  # 1 mm³, so that 1,000 voxels are 1 ml
SURFACES = ("assd_mm", "assd_lits_mm", "rmsd_mm", "hd95_mm", "mssd_mm", "surface_dice_2mm")
LABELS = hnp.arrays(np.uint8, st.just((4, 3, 5)), elements=st.integers(0, 2))


def line(*labels: int) -> np.ndarray:
    return np.array(labels, np.uint8).reshape(1, 1, -1)


def test_values_derived_by_hand() -> None:
    prediction = line(0, 0, 1, 1, 1, 2, 2, 1)
    reference = line(0, 1, 1, 1, 2, 2, 0, 0)
    found = count(prediction, reference)
    assert found["liver"] == Overlap(prediction=6, reference=5, both=4)
    assert found["liver_only"] == Overlap(prediction=4, reference=3, both=2)
    assert found["tumour"] == Overlap(prediction=2, reference=2, both=1)
    assert found["liver"].dice == pytest.approx(8 / 11)
    assert found["liver"].jaccard == pytest.approx(4 / 7)
    assert found["liver"].voe == pytest.approx(3 / 7)
    assert found["liver"].rvd == pytest.approx(1 / 5), "positive: too much predicted"
    assert found["liver_only"].rvd == pytest.approx(1 / 3)
    assert found["tumour"].dice == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("overlap", "dice", "lits", "rvd"),
    [
        pytest.param(Overlap(0, 0, 0), math.nan, 1.0, math.nan, id="both empty"),
        pytest.param(Overlap(5, 0, 0), 0.0, 0.0, math.nan, id="false positive"),
        pytest.param(Overlap(0, 5, 0), 0.0, 0.0, -1.0, id="missed"),
        pytest.param(Overlap(5, 5, 5), 1.0, 1.0, 0.0, id="perfect"),
    ],
)
def test_empty_masks(overlap: Overlap, dice: float, lits: float, rvd: float) -> None:
    assert overlap.dice == pytest.approx(dice, nan_ok=True)
    assert overlap.dice_lits == lits
    assert overlap.rvd == pytest.approx(rvd, nan_ok=True)


def scored(*tumours: Overlap) -> list[CaseScore]:
    return [
        CaseScore(f"case_{n}", VOXEL_MM, {"liver": Overlap(9, 9, 9), "liver_only": Overlap(), "tumour": one})
        for n, one in enumerate(tumours)
    ]


def test_the_three_policies_differ_as_the_field_says() -> None:
    both_empty, false_positive, half = Overlap(0, 0, 0), Overlap(4, 0, 0), Overlap(10, 30, 10)
    tumour = summarise(scored(both_empty, false_positive, half))["tumour"]
    policies = tumour["policies"]
    assert policies["nan"] == pytest.approx({"mean": 0.25, "median": 0.25, "sd": math.sqrt(1 / 8), "n": 2})
    assert policies["lits"] == pytest.approx({"mean": 0.5, "median": 0.5, "sd": 0.5, "n": 3})
    assert policies["pooled"] == pytest.approx({"mean": 20 / 44, "n": 3})
    assert tumour["dice"] == policies["nan"]["mean"]
    assert tumour["dice_lits"] == policies["lits"]["mean"]
    assert tumour["rvd"] == pytest.approx(-2 / 3), "only the case that has a tumour defines it"


def test_a_summary_of_nothing_is_null_not_nan() -> None:
    for scores in ([], scored(Overlap())):
        text = json.dumps(summarise(scores), allow_nan=False)
        assert json.loads(text)["liver_only"]["dice"] is None


def test_volumes_of_anisotropic_voxels() -> None:
    prediction, reference = np.zeros((2, 20, 20, 20), np.uint8)
    prediction[:10, :10, :] = 1
    reference[:10, :10, :10] = 2
    record = score_case("a", prediction, reference, (0.5, 0.8, 5.0)).record()
    assert record["liver"]["volume_ml"] == pytest.approx(4.0)
    assert record["liver"]["reference_volume_ml"] == pytest.approx(2.0)
    assert record["tumour"]["volume_ml"] == 0
    assert record["tumour"]["rvd"] == -1
    assert record["liver_only"]["rvd"] is None


@given(LABELS, LABELS)
def test_a_record_survives_json(prediction: np.ndarray, reference: np.ndarray) -> None:
    scored_case = score_case("a", prediction, reference, VOXEL_MM)
    assert CaseScore.from_record(json.loads(json.dumps(scored_case.record(), allow_nan=False))) == scored_case


@given(LABELS, LABELS)
def test_every_group_is_counted_as_its_masks_are(prediction: np.ndarray, reference: np.ndarray) -> None:
    for name, overlap in count(prediction, reference).items():
        p, r = np.isin(prediction, GROUPS[name]), np.isin(reference, GROUPS[name])
        assert overlap == Overlap(int(p.sum()), int(r.sum()), int((p & r).sum()))


@given(LABELS, LABELS, st.integers(0, 5))
def test_the_whole_is_its_merged_parts(prediction: np.ndarray, reference: np.ndarray, cut: int) -> None:
    whole = count(prediction, reference)
    head = count(prediction[:, :, :cut], reference[:, :, :cut])
    tail = count(prediction[:, :, cut:], reference[:, :, cut:])
    assert whole == {name: head[name] + tail[name] for name in GROUPS}


OVERLAPS = st.builds(Overlap, *[st.integers(0, 10**9)] * 3)


@given(OVERLAPS, OVERLAPS, OVERLAPS)
def test_merging_is_associative_commutative_and_has_an_identity(a: Overlap, b: Overlap, c: Overlap) -> None:
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert a + Overlap() == a


def test_slabs_and_memory_order_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    prediction, reference = np.random.default_rng(0).integers(0, 3, (2, 7, 5, 11), dtype=np.uint8)
    whole = confusion(prediction, reference)
    monkeypatch.setattr(overlap_module, "SLAB_VOXELS", 80)
    assert (confusion(prediction, np.asfortranarray(reference)) == whole).all()
    assert whole.sum() == prediction.size
    with pytest.raises(ValueError, match="shapes differ"):
        confusion(prediction, reference[:-1])


def test_overlap_agrees_with_monai() -> None:
    from monai.metrics import compute_dice, compute_iou

    prediction, reference = np.random.default_rng(5).integers(0, 3, (2, 9, 8, 7), dtype=np.uint8)
    hot = [
        torch.from_numpy(np.stack([np.isin(label, classes) for classes in GROUPS.values()])[None])
        for label in (prediction, reference)
    ]
    found = count(prediction, reference)
    dice, iou = compute_dice(*hot)[0].tolist(), compute_iou(*hot)[0].tolist()
    assert [found[group].dice for group in GROUPS] == pytest.approx(dice, abs=1e-6)
    assert [found[group].jaccard for group in GROUPS] == pytest.approx(iou, abs=1e-6)


@given(LABELS, LABELS, st.integers(0, 3), st.integers(0, 3))
def test_the_crop_changes_nothing(
    prediction: np.ndarray, reference: np.ndarray, before: int, after: int
) -> None:
    """Every measure is that of the whole volume, whether or not the foreground touches its border."""
    prediction, reference = (
        np.pad(label, ((0, 0), (before, after), (1, 0))) for label in (prediction, reference)
    )
    scored_case = score_case("a", prediction, reference, VOXEL_MM)
    assert scored_case.overlaps == count(prediction, reference)
    for name, classes in GROUPS.items():
        masks = np.isin(prediction, classes), np.isin(reference, classes)
        assert scored_case.surfaces[name] == all_distances(*masks, VOXEL_MM, 2.0)
    assert scored_case.lesions == find_lesions(prediction == 2, reference == 2, VOXEL_MM)


def test_a_record_has_every_measure_of_every_group() -> None:
    prediction, reference = np.random.default_rng(6).integers(0, 3, (2, 9, 8, 7), dtype=np.uint8)
    scored_case = score_case("a", prediction, reference, VOXEL_MM)
    record, summary = scored_case.record(), summarise([scored_case])
    for group in GROUPS:
        assert list(record[group]) == [*measures(), "voxels"]
        assert all(record[group][name] is not None for name in measures())
        assert {name: summary[group][name] for name in measures()} == pytest.approx(
            scored_case.measures(group)
        )
    assert {*SURFACES, "nsd_2mm"} < set(measures())
    assert set(record) == {"case", "spacing_mm", "nsd_tolerance_mm", *GROUPS, "lesions", "burden"}


def test_the_tolerance_of_nsd_is_in_its_name() -> None:
    prediction, reference = np.random.default_rng(7).integers(0, 3, (2, 9, 8, 7), dtype=np.uint8)
    found = score_case("a", prediction, reference, VOXEL_MM, nsd_tolerance_mm=0.5)
    record = json.loads(json.dumps(found.record()))
    assert "nsd_2mm" not in record["tumour"]
    assert record["tumour"]["nsd_0.5mm"] == found.surfaces["tumour"].nsd
    assert CaseScore.from_record(record) == found
    assert summarise([found])["liver"]["spread"]["nsd_0.5mm"]["n"] == 1


def test_what_an_empty_mask_leaves_undefined() -> None:
    empty, tumour = np.zeros((2, 4, 4, 4), np.uint8)
    tumour[1:3, 1:3, 1:3] = 2
    missed = score_case("missed", empty, tumour, VOXEL_MM).record()
    assert [missed["tumour"][name] for name in ("dice", "dice_lits", "voe", "rvd")] == [0, 0, 1, -1]
    assert [missed["tumour"][name] for name in SURFACES] == [None] * len(SURFACES)
    assert missed["tumour"]["nsd_2mm"] == 0, "as the programmes have it"
    assert missed["burden"] == {"prediction": None, "reference": 1, "error": None}
    invented = score_case("invented", tumour, empty, VOXEL_MM).record()
    assert [invented["tumour"][name] for name in ("dice", "dice_lits", "voe", "rvd")] == [0, 0, 1, None]
    agreed = score_case("agreed", empty, empty, VOXEL_MM)
    assert [agreed.measures("tumour")[name] for name in ("dice", "dice_lits", "voe", "rvd")] == [
        None,
        1,
        None,
        None,
    ]
    with_surfaces = score_case("a", tumour, tumour, VOXEL_MM)
    spread = summarise([agreed, with_surfaces])["tumour"]["spread"]
    assert [spread[name]["n"] for name in SURFACES] == [1] * len(SURFACES), (
        "the mean says of how many cases it is"
    )


def test_tumour_burden() -> None:
    """Half and a quarter of a liver for half and a half: errors of 0 and −1/4; without a liver, none."""
    cases = [line(1, 2, 1, 2), line(1, 1, 1, 2), line(0, 0, 0, 0)]
    truth = line(2, 1, 2, 1)
    scores = [score_case(f"case_{n}", label, truth, VOXEL_MM) for n, label in enumerate(cases)]
    assert scores[1].record()["burden"] == {"prediction": 0.25, "reference": 0.5, "error": -0.25}
    assert summarise(scores)["burden"] == {
        "rmse": pytest.approx(math.sqrt(0.25**2 / 2)),
        "max_error": 0.25,
        "n": 2,
    }
    assert summarise([])["burden"] == {"rmse": None, "max_error": None, "n": 0}


ERRORS = st.builds(BurdenError.of, st.none() | st.floats(-1, 1))


@given(ERRORS, ERRORS, ERRORS)
def test_merging_burden_is_associative(a: BurdenError, b: BurdenError, c: BurdenError) -> None:
    one, other = (a + b) + c, a + (b + c)
    assert (one.n, one.largest) == (other.n, other.largest)
    assert one.squares == pytest.approx(other.squares)
    assert a + BurdenError() == a


# score: files and folders


def write(path: Path, label: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(label, np.diag([*VOXEL_MM, 1.0]) if affine is None else affine), path)
    return path


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 3, (10, 10, 10), dtype=np.uint8)


def test_score_of_two_files(tmp_path: Path, labels: np.ndarray) -> None:
    found = score(write(tmp_path / "p" / "a.nii.gz", labels), write(tmp_path / "r" / "b.nii", labels))
    (case,) = found["cases"]
    assert case["liver"]["dice"] == found["summary"]["tumour"]["dice"] == 1
    assert case["tumour"]["volume_ml"] == pytest.approx((labels == 2).sum() / 1000)


def test_score_of_two_folders(tmp_path: Path, labels: np.ndarray) -> None:
    for name in ("x", "y"):
        write(tmp_path / "p" / f"{name}.nii.gz", labels)
        write(tmp_path / "r" / f"{name}.nii.gz", labels)
    (tmp_path / "r" / "._x.nii.gz").write_bytes(b"junk")
    assert [case["case"] for case in score(tmp_path / "p", tmp_path / "r")["cases"]] == ["x", "y"]
    (tmp_path / "p" / "x.nii.gz").unlink()
    with pytest.raises(LiversegError, match=r"LS382.*x\.nii\.gz has no partner"):
        score(tmp_path / "p", tmp_path / "r")


def test_score_in_a_terminal(tmp_path: Path, labels: np.ndarray) -> None:
    pair = write(tmp_path / "p" / "a.nii.gz", labels), write(tmp_path / "r" / "a.nii.gz", np.roll(labels, 1))
    command = [Path(sys.executable).with_name("liverseg"), "score", *pair]
    printed = json.loads(subprocess.run([*command, "--json"], capture_output=True, check=True).stdout)
    assert printed == score(*pair)
    tables = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    for heading in (
        "case",
        "pooled",
        "surface Dice at 2 mm",
        "NSD at 2 mm",
        "20 mm and more",
        "Tumour burden",
    ):
        assert heading in tables


def test_score_refuses_what_is_not_comparable(tmp_path: Path, labels: np.ndarray) -> None:
    reference = write(tmp_path / "r" / "a.nii.gz", labels)
    moved = np.diag([*VOXEL_MM, 1.0])
    moved[0, 3] = 0.25
    with pytest.raises(LiversegError, match=r"LS381.*0\.25 mm"):
        score(write(tmp_path / "p" / "a.nii.gz", labels, moved), reference)
    with pytest.raises(LiversegError, match=r"LS381.*shape"):
        score(write(tmp_path / "p" / "a.nii.gz", labels[:-1]), reference)
    with pytest.raises(LiversegError, match="LS281"):
        score(tmp_path / "p", reference)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LiversegError, match="LS383"):
        score(tmp_path / "empty", tmp_path / "empty")
