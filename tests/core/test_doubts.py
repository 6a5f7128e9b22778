"""What is doubted of a prediction, and what is not: with true labels in the network's place."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from liverseg_core.cases.label_survey import LabelSurvey
from liverseg_core.cases.scan_facts import anatomy_of
from liverseg_core.cases.scan_identity import ScanIdentity, identify
from liverseg_core.config import IngestConfig, NetworkConfig
from liverseg_core.errors import LiversegError
from liverseg_core.inference.doubts import doubts, label_facts, second_part
from liverseg_core.inference.findings import findings
from liverseg_core.inference.predict import Prepared, prepare
from liverseg_core.models.known_data import (
    KnownData,
    Measured,
    SeenCase,
    SeenCases,
    after,
    read_known,
    united,
    write_measured,
    write_seen,
)
from liverseg_core.models.model import Model, ModelSpec
from liverseg_core.phantom.case import phantom_case
from liverseg_core.volumes.nifti import as_label, open_nifti, open_scan, read_nifti

Patient = tuple[np.ndarray, np.ndarray, np.ndarray]
NOTHING = KnownData()
SPEC = ModelSpec(
    network=NetworkConfig(channels=(4, 8)),
    activation="softmax",
    patch_size=(32, 32, 32),
    window_hu=(-200, 300),
    ingest=IngestConfig(spacing_mm=(4, 4, 4)),
    data_key="none",
)
MODEL = Model(nn.Identity(), SPEC, torch.device("cpu"))


@pytest.fixture(scope="module")
def patient() -> Patient:
    """Scan, label and affine of a phantom with tumours."""
    return phantom_case(0, 1, (88, 88, 56))


def doubted(
    image: np.ndarray, label: np.ndarray, affine: np.ndarray, known: KnownData = NOTHING
) -> dict[str, str]:
    """What is doubted of a label of a scan."""
    data = nib.Nifti1Image(image, affine).to_bytes()
    return of_prepared(prepare(MODEL, open_scan([data], len(data), "scan")), label, known)


def of_prepared(scan: Prepared, label: np.ndarray, known: KnownData = NOTHING) -> dict[str, str]:
    """What is doubted of a label, on the scan's own axes, as `segment_scan` finds it."""
    spacing_mm = scan.target.source.spacing_mm
    canonical = np.asfortranarray(scan.target.orientation.to_canonical(label))
    found = findings(canonical, spacing_mm)
    anatomy = anatomy_of(scan.target, scan.image, canonical)
    facts = {**scan.facts, "native_label": label_facts(canonical, found, spacing_mm), "anatomy": anatomy}
    return doubts(facts, found, second_part(canonical, spacing_mm), known)


@pytest.mark.parametrize("index", [1, 2, 3, 4])
def test_right_answers_to_good_scans_raise_none(index: int) -> None:
    assert doubted(*phantom_case(0, index, (88, 88, 56))) == {}


def test_a_liver_cut_off_by_the_scan(patient: Patient) -> None:
    image, label, affine = patient
    (planes,) = np.nonzero(label.any(axis=(0, 1)))
    middle = int(planes.mean())
    assert [*doubted(image[:, :, :middle], label[:, :, :middle], affine)] == ["liver-cut-off"]


def test_the_second_part() -> None:
    label = np.zeros((20, 20, 20), np.uint8)
    assert second_part(label, (2, 2, 2)) == 0
    label[2:12, 2:12, 2:12] = 1
    label[4:6, 4:6, 4:6] = 2  # inside
    assert second_part(label, (2, 2, 2)) == 0
    label[12:18, 12:16, 12:20] = 1  # touches at a corner only
    for spacing_mm in ((2, 2, 2), (1, 1, 1)):
        assert second_part(label, spacing_mm) == pytest.approx(0.192)
    label[11, 12, 12] = 2
    label[11, 11, 12] = 2
    assert second_part(label, (2, 2, 2)) == 0


@pytest.mark.parametrize(("axis", "mm2"), [(0, 6), (1, 3), (2, 2)])
@pytest.mark.parametrize("end", [0, -1])
def test_what_lies_on_a_face(axis: int, mm2: float, end: int) -> None:
    """In a prediction and in a label that is surveyed plane by plane, alike."""
    label = np.zeros((20, 18, 16), np.uint8)
    label[4:12, 4:12, 4:12] = 1
    face = np.moveaxis(label, axis, 0)
    face[slice(0, 4) if end == 0 else slice(12, None), 5:7, 5:8] = 2
    assert alike(label)["edge_cm2"] == 6 * mm2 / 100


def alike(label: np.ndarray) -> dict[str, Any]:
    """What is known of a label, which is the same for one that is surveyed and one that is predicted."""
    survey = LabelSurvey()
    for plane in label.T:
        survey.add(np.ascontiguousarray(plane))
    found = survey.facts((1, 2, 3))
    predicted = label_facts(label, findings(label, (1, 2, 3)), (1, 2, 3))
    assert {**found, "voxels": [0, *found["voxels"][1:]]} == predicted
    return predicted


@pytest.mark.parametrize("density", [0.002, 0.005, 0.01])
def test_tumours_outside_the_liver(density: float) -> None:
    rng = np.random.default_rng(int(1000 * density))
    label = np.asfortranarray(rng.choice(3, (20, 18, 16), p=[0.8 - density, 0.2, density]).astype(np.uint8))
    assert alike(label)["tumours_outside_liver"] > 0
    label[:] = 0
    label[0, 0, 0] = 2
    assert alike(label)["tumours_outside_liver"] == 1


def test_two_livers(patient: Patient) -> None:
    image, label, affine = patient
    two = label.copy()
    two[:2, :2, :2] = 1  # a crumb
    assert [*doubted(image, two, affine)] == []
    two[: max(1, int(np.nonzero(label)[0].min()) - 1)] = 1
    assert "several-livers" in doubted(image, two, affine)


def test_lesions_too_many_or_too_large(patient: Patient) -> None:
    image, label, affine = patient
    specks = np.minimum(label, 1)
    inside = [tuple(at) for at in np.argwhere(label > 0) if not sum(at) % 3 and not at[0] % 2][:76]
    for at in inside:
        specks[at] = 2
    assert doubted(image, specks, affine)["implausible-lesions"].startswith("76 lesions")


def test_volumes_beyond_what_the_model_knows(patient: Patient) -> None:
    _, label, affine = patient
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    liver_ml, tumour_ml = np.count_nonzero(label) * voxel_ml, np.count_nonzero(label == 2) * voxel_ml

    def known(liver: tuple[float, float], tumour: tuple[float, float] | None) -> KnownData:
        return KnownData(None, Measured(cases=3, liver_ml=liver, tumour_ml=tumour))

    assert [*doubted(*patient, known((liver_ml * 1.4, liver_ml * 2), (0.1, tumour_ml)))] == []
    assert [*doubted(*patient, known((liver_ml * 1.6, liver_ml * 2), None))] == ["liver-beyond-measured"]
    assert [*doubted(*patient, known((1.0, liver_ml / 1.6), None))] == ["liver-beyond-measured"]
    small = known((liver_ml, liver_ml), (0.1, tumour_ml / 1.6))
    assert doubted(*patient, small)["tumour-beyond-measured"].startswith(f"tumour {tumour_ml:.0f} ml")
    trained = SeenCase(case="a", role="training", identity=None, liver_ml=liver_ml * 1.2, tumour_ml=0)
    both = KnownData(SeenCases(cases=(trained,)), known((liver_ml / 2, liver_ml / 2), None).measured)
    assert both.range_ml("liver_ml") == (liver_ml / 2, liver_ml * 1.2)
    assert [*doubted(*patient, both)] == []


def shown(identity: ScanIdentity, **changes: Any) -> SeenCase:
    return SeenCase(**{"case": "liver_7", "role": "training", "identity": identity, **changes})


@pytest.mark.parametrize(
    ("cases", "flag", "said"),
    [
        ([{}], "seen-in-training", "trained the model, as case liver_7"),
        ([{"role": "validation"}], "seen-in-validation", "chose and measured the model"),
        ([{"role": "validation"}, {"member": 3}], "seen-in-training", "the model (member 3)"),
        ([{"before": True}], "seen-in-training", "the weights that the model began with"),
    ],
)
def test_a_scan_that_the_model_has_seen(
    patient: Patient, cases: list[dict[str, Any]], flag: str, said: str
) -> None:
    """Under another header, too."""
    image, label, affine = patient
    seen = SeenCases(cases=tuple(shown(identify(image), **changes) for changes in cases))
    turned = [np.asfortranarray(part[::-1].transpose(1, 0, 2)) for part in (image, label)]
    for scan in (patient, (*turned, affine)):
        found = doubted(*scan, KnownData(seen))
        assert said in found[flag]
    other = SeenCases(cases=(shown(identify(image + np.eye(88, dtype=np.int16)[:, :, None])),))
    assert [*doubted(*patient, KnownData(other))] == []


def test_what_was_seen_is_handed_on(tmp_path: Path) -> None:
    """From weights to those that began with them, and from members to their ensemble."""
    one, two = (ScanIdentity(f"h{n}", f"v{n}") for n in range(2))
    folders = [tmp_path / name for name in ("first", "second", "third", "old", "fourth")]
    for folder in folders:
        folder.mkdir()
    first, second, third, old, fourth = folders
    write_seen(first, after(None, [shown(one), shown(two, role="validation", case="liver_8")]))
    write_seen(second, after(first, [shown(one), shown(two, role="validation")]))
    write_seen(third, after(second, [shown(two)]))
    known = read_known(third).seen
    assert known
    assert known.complete
    assert [(case.role, case.before) for case in known.find(two)] == [
        ("training", False), ("validation", True), ("validation", True),
    ]  # fmt: skip
    assert [(case.role, case.before) for case in known.find(one)] == [("training", True)]
    write_seen(fourth, after(old, [shown(one)]))
    begun = read_known(fourth).seen
    assert begun
    assert not begun.complete, "nobody knows what the older one had seen"
    both = united([first, fourth])
    assert both
    assert not both.complete
    assert [(case.member, case.role) for case in both.find(one)] == [(1, "training"), (2, "training")]
    assert united([old, old]) is None
    assert read_known(old) == KnownData()
    (first / "seen.json").write_text('{"cases": 1}')
    with pytest.raises(LiversegError, match=r"LS522.*seen\.json"):
        read_known(first)


def test_what_a_model_was_measured_on(tmp_path: Path) -> None:
    def record(liver: tuple[float, float], tumour: tuple[float, float]) -> dict[str, Any]:
        groups = {"liver": liver, "tumour": tumour}
        return {
            name: {"volume_ml": ours, "reference_volume_ml": true} for name, (ours, true) in groups.items()
        }

    write_measured(tmp_path, [record((900, 950), (0, 0)), record((1200, 1100), (4.5, 0))])
    measured = read_known(tmp_path).measured
    assert measured == Measured(cases=2, liver_ml=(900, 1200), tumour_ml=(4.5, 4.5))


REAL = {
    "totalseg_example/example_ct.nii.gz": ("totalseg_example/example_liver_float64.nii.gz", "liver-cut-off"),
    "crlm1100_highres/imagesTr/crlm1100_highres.nii.gz": (
        "crlm1100_highres/labelsTr/crlm1100_highres.nii.gz",
        "",
    ),
    "hcc_tace_seg/HCC_009/pre_103_portal.nii.gz": (
        "hcc_tace_seg/HCC_009/pre_103_portal_label_shift_down1.nii.gz",
        "liver-cut-off",
    ),
    "hcc_tace_seg/HCC_048/pre_6_portal.nii.gz": (None, "no-liver"),
    "lidc0314_lower/lidc0314_lower110_ct.nii.gz": (None, "no-liver"),
    "adrenal_ki67_052/imagesTr/adrenal_ki67_052.nii.gz": (None, "no-liver"),
}
"""Scan → its label, and all that is to be doubted: where there is no label, that none was found."""


@pytest.mark.parametrize("name", REAL)
def test_real_scans_that_are_good(name: str, real_data: Path) -> None:
    label, flags = REAL[name]
    scan = prepare(MODEL, open_nifti(real_data / name))
    shape = scan.target.orientation.from_canonical(np.empty(scan.target.source.shape, np.uint8)).shape
    truth = as_label(read_nifti(real_data / label)) if label else np.zeros(shape, np.uint8)
    assert " ".join(of_prepared(scan, truth)) == flags
