"""What predict doubts, what it must not write over, and what must not end it."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from tiny_model import tiny_spec, write_tiny_model
from typer.testing import CliRunner

from flows.cli import app
from flows.commands.scan_paths import label_paths, scans_of
from flows.console import dice_table
from liverseg_core.artifacts.artifact import Recipe
from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.artifacts.produce import produce
from liverseg_core.artifacts.stages import TRAIN
from liverseg_core.errors import LiversegError
from liverseg_core.inference.opened import identify_path
from liverseg_core.models.known_data import SeenCase, SeenCases, write_seen
from liverseg_core.phantom.case import phantom_case
from liverseg_core.sources.source import open_source
from liverseg_core.words import counted

ROWS: dict[str, tuple[str, str]] = {
    "1.1": (
        "a label would go where a scan lies, by any name, or into its series",
        "refused, nothing written",
    ),
    "1.6": ("a scan in other units, a label, a header that lost its spacing", "named; --strict exits 8"),
    "1.9": ("names that end in capitals", "read alike, written in small letters"),
    "1.10": ("class 2 is a spleen", "refused, with the field named"),
    "2.6": ("a bad scan and a bad series in a batch", "the others are done, these named, exit 8"),
    "4 header": ("a scan whose header says how to show its values", "its label's header says nothing of it"),
    "4 one case": ("a single validation case", "1 validation case"),
    "2.9": ("a model's folder copied under another name", "predicts, and is said to be a copy"),
}
"""Row → what is given, what is right."""


@dataclass(frozen=True)
class Said:
    """What a command left."""

    code: int
    out: str
    err: str
    error: str


def run(*arguments: object) -> Said:
    """`liverseg`, in this process."""
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    if isinstance(done.exception, LiversegError):
        return Said(int(done.exception.exit_code), done.stdout, done.stderr, str(done.exception))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return Said(done.exit_code, done.stdout, done.stderr, "")


def made_model(folder: Path) -> dict[str, Any]:
    """A network that was never trained."""
    write_tiny_model(folder, tiny_spec(32, 5))
    return {}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that was never trained, in a folder."""
    folder = tmp_path_factory.mktemp("model")
    made_model(folder)
    return folder


@pytest.fixture(scope="module")
def patient() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scan, label and affine of a phantom."""
    return phantom_case(0, 1, (48, 48, 32))


@pytest.fixture
def scan(patient: tuple[np.ndarray, ...], tmp_path: Path) -> Path:
    """The phantom's scan as a file."""
    (tmp_path / "scans").mkdir()
    path = tmp_path / "scans" / "scan.nii.gz"
    nib.save(nib.Nifti1Image(patient[0], patient[2]), path)
    return path


@pytest.fixture
def series(patient: tuple[np.ndarray, ...], tmp_path: Path) -> Path:
    """The same as a series in DICOM."""
    folder = tmp_path / "SER"
    folder.mkdir()
    one, frame = generate_uid(), generate_uid()
    for k in range(patient[0].shape[2]):
        write_slice(folder / f"IM{k:04}.dcm", patient[0][:, :, k], k, (one, frame))
    return folder


def write_slice(path: Path, hu: np.ndarray, k: int, uids: tuple[str, str]) -> None:
    """One CT slice."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    image.SeriesInstanceUID, image.FrameOfReferenceUID = uids
    image.StudyInstanceUID, image.Modality, image.ImageType = uids[1], "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    for empty in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"):
        setattr(image, empty, "")
    for empty in ("StudyDate", "StudyTime", "StudyID", "SliceThickness"):
        setattr(image, empty, "" if empty != "SliceThickness" else 7)
    image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, 7 * k], [1, 0, 0, 0, 1, 0]
    image.PixelSpacing, image.RescaleSlope, image.RescaleIntercept = [6, 6], 1, -1024
    image.Columns, image.Rows = hu.shape
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.PixelData = (hu.T + 1024).astype(np.uint16).tobytes()
    image.save_as(path, enforce_file_format=True)


def contents(*folders: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()
    }


def to_itself(scan: Path) -> list[object]:
    return [scan, "-o", scan]


def by_another_way(scan: Path) -> list[object]:
    return [scan, "-o", scan.parent / ".." / "scans" / "." / scan.name]


def through_a_link(scan: Path) -> list[object]:
    link = scan.with_name("label.nii.gz")
    link.symlink_to(scan)
    return [scan, "-o", link]


def from_a_link(scan: Path) -> list[object]:
    link = scan.with_name("link.nii.gz")
    link.symlink_to(scan)
    return [link, "-o", scan]


def through_a_linked_folder(scan: Path) -> list[object]:
    link = scan.parent.with_name("linked")
    link.symlink_to(scan.parent)
    return [scan, "-o", link]


def hard_linked(scan: Path) -> list[object]:
    link = scan.with_name("hard.nii.gz")
    os.link(scan, link)
    return [scan, "-o", link]


def onto_another_one(scan: Path) -> list[object]:
    (scan.parent / "in").mkdir()
    other = shutil.copy(scan, scan.parent / "in" / "scan_uncertainty.nii.gz")
    return [scan, other, "-o", scan.parent / "in", "--uncertainty"]


def among_the_scans(scan: Path) -> list[object]:
    nib.save(nib.load(scan), scan.with_name("plain.nii"))
    scan.unlink()
    return [scan.parent, "-o", scan.parent]


def in_capitals(scan: Path) -> list[object]:
    return [scan, "-o", scan.with_name("scan.NII.GZ")]


PLACES = (to_itself, by_another_way, through_a_link, from_a_link, through_a_linked_folder, hard_linked)


@pytest.mark.trouble("1.1")
@pytest.mark.parametrize("place", [*PLACES, onto_another_one, among_the_scans, in_capitals])
def test_no_label_takes_a_scans_place(
    place: Callable[[Path], list[object]], scan: Path, model: Path, tmp_path: Path
) -> None:
    asked = place(scan)
    before = contents(tmp_path)
    said = run("predict", *asked, "--model", model)
    assert said.error.startswith("LS208"), said
    assert contents(tmp_path) == before


@pytest.mark.trouble("1.1")
def test_nothing_is_written_into_a_series_or_a_model(series: Path, model: Path, tmp_path: Path) -> None:
    before = contents(series, model)
    for out in (series / "label.nii.gz", series / "labels", series, model / "label.nii.gz"):
        said = run("predict", series, "--model", model, "-o", out)
        assert said.error.startswith("LS208"), out
    assert contents(series, model) == before


@pytest.mark.trouble("1.1")
def test_a_folder_with_slices_is_a_series_whatever_else_lies_there(
    series: Path, scan: Path, tmp_path: Path
) -> None:
    shutil.copy(scan, series / "label.nii.gz")
    (series / "notes.txt").write_text("mine")
    assert scans_of([series]) == [series]
    # without its preamble and meta header, or implicit, a slice is one all the same
    for path in series.glob("*.dcm"):
        path.write_bytes(path.read_bytes().partition(b"\x08\x00\x08\x00CS")[2])
    assert scans_of([series]) == [series]
    for path in series.glob("*.dcm"):
        path.write_bytes(b"\x08\x00\x16\x00\x1a\x00\x00\x001.2.840.10008.5.1.4.1.1.2\x00")
    assert scans_of([series]) == [series]
    (tmp_path / "seg").mkdir()
    (tmp_path / "seg" / "a_seg.dcm").write_bytes(
        b"\x08\x00\x16\x00UI\x1c\x001.2.840.10008.5.1.4.1.1.66.4\x00"
    )
    shutil.copy(scan, tmp_path / "seg" / "a.nii.gz")
    assert scans_of([tmp_path / "seg"]) == [tmp_path / "seg" / "a.nii.gz"]


@pytest.mark.trouble("1.1")
def test_a_page_replaces_pages_alone(scan: Path) -> None:
    before = scan.read_bytes()
    assert run("verify", scan, "--report", scan).error.startswith("LS213")
    assert scan.read_bytes() == before


def rescaled(hu: np.ndarray) -> np.ndarray:
    return ((hu + 1024.0) / 2048).astype(np.float32)


def as_bytes(hu: np.ndarray) -> np.ndarray:
    return np.clip((hu + 160) / 400 * 255, 0, 255).astype(np.uint8)


def z_scored(hu: np.ndarray) -> np.ndarray:
    return ((hu - hu.mean()) / hu.std()).astype(np.float32)


def raised(hu: np.ndarray) -> np.ndarray:
    return hu + np.int16(1024)


def windowed(hu: np.ndarray) -> np.ndarray:
    return np.clip(hu, -160, 240)


def inverted(hu: np.ndarray) -> np.ndarray:
    return -hu


ODD_UNITS = (rescaled, as_bytes, z_scored, raised, windowed, inverted)


@pytest.mark.trouble("1.6")
def test_each_odd_scan_is_named(patient: tuple[np.ndarray, ...], model: Path, tmp_path: Path) -> None:
    """In the table, in JSON and on standard error; its label is written all the same."""
    hu, label, affine = patient
    odd = {change.__name__: (change(hu), affine, "odd-hu-offset") for change in ODD_UNITS}
    odd["label"] = label, affine, "odd-hu-offset"
    odd["identity"] = hu, np.eye(4), "identity-affine"
    paths = []
    for name, (voxels, where, _) in odd.items():
        paths.append(tmp_path / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(voxels, where), paths[-1])
    said = run("predict", *paths, "--model", model, "-o", tmp_path / "out", "--json")
    assert said.code == 0, said
    for (name, (_, _, flag)), found in zip(odd.items(), json.loads(said.out), strict=True):
        assert flag in found["flags"], name
        assert Path(found["label"]).exists()
        (line,) = [line for line in said.err.splitlines() if line.startswith(found["image"])]
        assert all(remark in line for remark in found["remarks"])
    strict = run("predict", paths[0], "--model", model, "-o", tmp_path / "strict.nii.gz", "--strict")
    assert (strict.code, strict.error) == (8, "")
    assert "odd-hu-offset" in strict.out
    assert "1 of 1 label" in strict.err
    assert (tmp_path / "strict.nii.gz").exists()


@pytest.mark.trouble("1.9")
def test_endings_in_capitals(scan: Path, model: Path, tmp_path: Path) -> None:
    loud = scan.rename(scan.with_name("SCAN.NII.GZ"))
    assert scans_of([loud.parent]) == [loud]
    assert label_paths([loud], tmp_path / "out", 1) == [tmp_path / "out" / "SCAN.nii.gz"]
    said = run("predict", loud, "--model", model, "-o", tmp_path / "LABEL.NII.GZ", "--uncertainty")
    assert said.code == 0, said
    assert (tmp_path / "LABEL.nii.gz").is_file()
    assert (tmp_path / "LABEL_uncertainty.nii.gz").is_file()
    for folder, name in (("a", "CASE1.NII.GZ"), ("b", "CASE1.Nii.gz")):
        (tmp_path / folder).mkdir()
        shutil.copy(tmp_path / "LABEL.nii.gz", tmp_path / folder / name)
    scored = run("score", tmp_path / "a", tmp_path / "b", "--json")
    assert [one["case"] for one in json.loads(scored.out)["cases"]] == ["CASE1"]
    shutil.copy(tmp_path / "a" / "CASE1.NII.GZ", tmp_path / "a" / "CASE1.nii.gz")
    assert run("score", tmp_path / "a", tmp_path / "b").error.startswith("LS360")


@pytest.fixture
def dataset(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a dataset of one case, whose files end in capitals."""

    def write(**labels: str) -> Path:
        folder = tmp_path / "T"
        for kind in ("images", "labels"):
            (folder / f"{kind}Tr").mkdir(parents=True, exist_ok=True)
            (folder / f"{kind}Tr" / "CASE1.NII.GZ").write_bytes(b"scan")
        pair = {"image": "./imagesTr/CASE1.NII.GZ", "label": "./labelsTr/CASE1.NII.GZ"}
        listing = {"labels": {"0": "background", "1": "liver", **labels}, "training": [pair]}
        (folder / "dataset.json").write_text(json.dumps(listing))
        return folder

    return write


@pytest.mark.trouble("1.9")
def test_a_dataset_in_capitals(dataset: Callable[..., Path]) -> None:
    assert [case.case for case in open_source(str(dataset())).cases] == ["CASE1"]


@pytest.mark.trouble("1.10")
@pytest.mark.parametrize("name", ["spleen", "vessel", "", "kidney tumor", "non-tumor", "liver"])
def test_class_2_is_a_tumour(dataset: Callable[..., Path], name: str) -> None:
    with pytest.raises(LiversegError, match=r'LS306.*labels\."2" is') as refused:
        open_source(str(dataset(**{"2": name})))
    assert repr(name) in str(refused.value)


@pytest.mark.parametrize("name", ["cancer", "Tumour", "liver tumor", "hepatic_metastases", "HCC", "mass(es)"])
def test_what_class_2_may_be_called(dataset: Callable[..., Path], name: str) -> None:
    assert open_source(str(dataset(**{"2": name}))).cases


@pytest.mark.trouble("2.6")
def test_a_bad_scan_ends_no_batch(scan: Path, series: Path, model: Path, tmp_path: Path) -> None:
    cut = scan.with_name("cut.nii.gz")
    cut.write_bytes(scan.read_bytes()[:-900])
    bad = tmp_path / "BAD"
    bad.mkdir()
    shutil.copy(series / "IM0000.dcm", bad)
    asked = (cut, scan, bad, tmp_path / "none.nii", series)
    said = run("predict", *asked, "--model", model, "-o", tmp_path / "out", "--json")
    assert said.code == 8, said
    assert [Path(one["image"]) for one in json.loads(said.out)] == [scan, series]
    for path, code in ((cut, "LS311"), (bad, "LS354"), (tmp_path / "none.nii", "LS301")):
        assert f"{path}: {code}" in said.err
    none = run("predict", cut, bad, "--model", model, "-o", tmp_path / "out", "--json")
    assert (none.code, json.loads(none.out)) == (3, [])
    assert "LS311" in none.err
    assert "LS354" in none.err


@pytest.mark.trouble("2.9")
def test_a_copied_model_predicts(scan: Path, tmp_path: Path) -> None:
    kept = produce(LocalStore(tmp_path / "store"), Recipe(TRAIN, {}, {}), made_model).path
    copy = Path(shutil.copytree(kept, tmp_path / "my_model"))
    (copy / ".DS_Store").write_bytes(b"a file manager was here")
    said = run("predict", scan, "--model", copy, "-o", tmp_path / "label.nii.gz")
    assert said.code == 0, said
    assert f"{copy} is a copy of the model {kept.name[:12]}" in said.err
    first = run("predict", scan, "--model", kept, "-o", tmp_path / "first.nii.gz")
    assert "copy" not in first.err
    assert (tmp_path / "label.nii.gz").read_bytes() == (tmp_path / "first.nii.gz").read_bytes()
    manifest = (copy / "manifest.json").read_bytes()
    for name, data in (("model.safetensors", b"other"), ("manifest.json", manifest[:-9])):
        (copy / name).write_bytes(data)
        said = run("predict", scan, "--model", copy, "-o", tmp_path / "label.nii.gz")
        assert said.error.startswith(("LS501", "LS502")), name
        assert "Delete" not in said.error


def test_a_scan_that_trained_the_model_is_said_to_have(
    patient: tuple[np.ndarray, ...], scan: Path, tmp_path: Path
) -> None:
    """By `seen`, by `predict`, and by `score`, which gets nothing but the label; under any header."""
    model = tmp_path / "known"
    model.mkdir()
    made_model(model)
    write_seen(model, SeenCases(cases=(SeenCase(case="a", role="training", identity=identify_path(scan)),)))
    other, label = tmp_path / "other.nii.gz", tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image(patient[0][:, ::-1].transpose(2, 0, 1).copy(), np.eye(4)), other)
    asked = json.loads(run("seen", model, scan, other, "--json").out)
    assert [[case["case"] for case in one["seen"]] for one in asked] == [["a"], ["a"]]
    said = run("predict", other, "--model", model, "-o", label)
    assert "seen-in-training" in said.out
    assert "this scan trained the model, as case a" in said.err
    assert nib.load(label).header["descrip"].item() == b"liverseg: seen-in-training"
    scored = run("score", label, label, "--json")
    assert json.loads(scored.out)["cases"][0]["flags"] == ["seen-in-training"]
    assert "seen-in-training" in run("score", label, label).err


@pytest.mark.trouble("4 header")
def test_a_label_keeps_nothing_but_geometry(
    patient: tuple[np.ndarray, ...], model: Path, tmp_path: Path
) -> None:
    """How to show the scan's values, what they are and when its slices were taken is not so of its label."""
    wrong = {"cal_min": -150, "cal_max": 250, "intent_code": 1001, "intent_p1": 3, "toffset": 2}
    wrong |= {"slice_code": 1, "slice_end": 31, "slice_duration": 0.5, "dim_info": 57, "descrip": b"Mr Smith"}
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        image = kind(patient[0], patient[2])
        image.set_qform(patient[2], 1)
        for field, value in wrong.items():
            image.header[field] = value
        nib.save(image, tmp_path / "scan.nii.gz")
        out = tmp_path / "out"
        asked = ("predict", tmp_path / "scan.nii.gz", "--model", model, "-o", out, "--uncertainty")
        assert run(*asked).code == 0
        for path in out.iterdir():
            written = nib.load(path)
            assert {field: written.header[field].item() for field in wrong} == dict.fromkeys(wrong, 0) | {
                "descrip": b""
            }
            assert np.array_equal(written.get_qform(), nib.load(tmp_path / "scan.nii.gz").get_qform())


@pytest.mark.trouble("4 one case")
def test_one_case_is_one() -> None:
    assert [counted(n, "validation case") for n in (0, 1, 2)] == [
        "0 validation cases",
        "1 validation case",
        "2 validation cases",
    ]
    policies = {"nan": dict.fromkeys(("mean", "median", "sd")), "lits": {"mean": 1}, "pooled": {"mean": 1}}
    groups = ("liver", "liver_only", "tumour")
    summary = {"cases": 1, **{group: {"policies": policies} for group in groups}}
    assert dice_table(summary).title == "Native-space Dice, 1 validation case"
