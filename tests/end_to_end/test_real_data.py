"""Real CTs through the real command line: a small Decathlon tar, a model, labels on the scans' own grids."""

import contextlib
import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from commands import LIVERSEG

pytestmark = [pytest.mark.slow, pytest.mark.whole]

Run = Callable[..., Any]
LABELS = {"0": "background", "1": "liver", "2": "cancer"}
CASES = {
    "example": ("totalseg_example/example_ct.nii.gz", "totalseg_example/example_liver_float64.nii.gz"),
    "small": ("totalseg_example/example_ct_sm.nii.gz", "totalseg_example/example_sm_liver_uint8.nii.gz"),
    "slices": ("dcmqi_ct3slice/dcmqi3_ct.nii.gz", "dcmqi_ct3slice/dcmqi3_liver.nii.gz"),
}


def decathlon(path: Path, files: Mapping[str, Path], training: list[str], test: list[str]) -> Path:
    """Write a tar in the Decathlon layout."""
    pairs = [
        {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in training
    ]
    listing = {"name": "Liver", "labels": LABELS, "training": pairs, "test": test}
    with tarfile.open(path, "w") as archive:
        for name, file in files.items():
            archive.add(file, f"Task03_Liver/{name}")
        data = json.dumps(listing).encode()
        member = tarfile.TarInfo("Task03_Liver/dataset.json")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def real() -> Path:
    """The folder of real CTs."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("LIVERSEG_REAL_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real data: neither LIVERSEG_REAL_DATA nor {beside}")
    return folder


@pytest.fixture(scope="module")
def trained(liverseg: Run, real: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the flow made of three real cases, as its JSON."""
    folder = tmp_path_factory.mktemp("real")
    files = {f"imagesTr/{case}.nii.gz": real / image for case, (image, _) in CASES.items()}
    files |= {f"labelsTr/{case}.nii.gz": real / label for case, (_, label) in CASES.items()}
    source = decathlon(folder / "Task03_Liver.tar", files, [*CASES], [])
    assert liverseg("verify", source, "--workers", 0, "--json").ok().data["problems"] == 0
    quick = ["--set", "split.validation=1", "--set", "train.steps=60", "--workers", 0]
    ended = liverseg("run", source, "--config", tiny, "--store", folder / "store", *quick, "--json").ok()
    return {**ended.data, "store": folder / "store"}


@pytest.mark.parametrize("case", CASES)
def test_scans_and_masks_fit_each_other(real: Path, case: str) -> None:
    """One grid, and soft tissue under the mask: the files are what the other tests take them for."""
    image, label = (nib.load(real / name) for name in CASES[case])
    assert image.shape == label.shape
    np.testing.assert_allclose(image.affine, label.affine, atol=1e-4)
    inside = image.get_fdata()[label.get_fdata() == 1]
    assert inside.size > 0
    assert 0 < np.median(inside) < 200


def test_the_flow_takes_real_cases(trained: Any) -> None:
    """All of them, a float64 mask and a scan of three slices among them."""
    stored = {case["case"]: case for case in trained["ingest"]["cases"]}
    assert stored.keys() == CASES.keys()
    assert not trained["ingest"]["quarantined"]
    assert all(case["labelled"] and not case["tumour"] for case in stored.values())
    summary = trained["evaluate"]["summary"]
    assert summary["cases"] == 1
    assert 0 <= summary["liver"]["dice"] <= 1
    assert trained["register"]["version"] == 1


def test_native_volumes_are_the_masks_own(trained: Any, real: Path) -> None:
    """Evaluation is against the tar's own mask, in its own voxels."""
    (scored,) = trained["evaluate"]["cases"]
    mask = nib.load(real / CASES[scored["case"]][1])
    voxels = int(np.count_nonzero(np.asarray(mask.dataobj)))
    assert scored["liver"]["voxels"]["reference"] == voxels
    volume = voxels * abs(np.linalg.det(mask.affine[:3, :3])) / 1000
    assert scored["liver"]["reference_volume_ml"] == pytest.approx(volume, rel=1e-5)


def test_a_prediction_lies_on_its_scan(liverseg: Run, trained: Any, real: Path, tmp_path: Path) -> None:
    """The scan's own shape, sform and qform, bit for bit; and the same voxels however the scan is stored."""
    scan = nib.load(real / CASES["example"][0])
    # stored z, x, y with two of the axes backwards: the same patient
    turned = scan.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    assert turned.shape != scan.shape
    nib.save(turned, tmp_path / "turned.nii.gz")
    model = trained["store"] / "models" / trained["train"]["key"]
    images = [real / CASES["example"][0], tmp_path / "turned.nii.gz"]
    liverseg("predict", *images, "--model", model, "-o", tmp_path / "labels").ok()
    label, turned_label = (nib.load(tmp_path / "labels" / image.name) for image in images)
    for predicted, source in ((label, scan), (turned_label, turned)):
        assert predicted.shape == source.shape
        assert predicted.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(predicted.affine, source.affine)
        for form in ("sform", "qform"):
            assert int(predicted.header[f"{form}_code"]) == int(source.header[f"{form}_code"])
            np.testing.assert_array_equal(
                getattr(predicted.header, f"get_{form}")(), getattr(source.header, f"get_{form}")()
            )
    values = np.asarray(label.dataobj)
    assert set(np.unique(values)) <= {0, 1, 2}
    assert np.count_nonzero(values), "a network that finds nothing would make the next line say nothing"
    back = nib.as_closest_canonical(turned_label)
    np.testing.assert_allclose(back.affine, nib.as_closest_canonical(label).affine, atol=1e-3)
    np.testing.assert_array_equal(
        np.asarray(back.dataobj), np.asarray(nib.as_closest_canonical(label).dataobj)
    )


@pytest.mark.parametrize("verb", ["verify", "ingest"])
def test_a_scan_at_full_resolution(
    command_environment: dict[str, str],
    real: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    verb: str,
) -> None:
    """512×512×110 to 1 mm in one process, within a gigabyte."""
    source = decathlon(
        tmp_path / "lidc.tar",
        {"imagesTs/lidc.nii.gz": real / "lidc0314_lower" / "lidc0314_lower110_ct.nii.gz"},
        [],
        ["./imagesTs/lidc.nii.gz"],
    )
    store = ["--store", tmp_path / "store"] if verb == "ingest" else []
    process = subprocess.Popen(
        [LIVERSEG, verb, str(source), "--workers", "0", "--json", *map(str, store)],
        env=command_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    ended, peak_mb = 0, 0.0
    while not ended:  # the usage that wait4 gives counts what this process had when it forked
        with contextlib.suppress(OSError, ValueError):
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            peak_mb = max([peak_mb, *(int(line.split()[1]) / 1024 for line in lines if "VmHWM" in line)])
        ended, status, used = os.wait4(process.pid, os.WNOHANG)
        time.sleep(0.02)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, process.stderr.read()
    record_property(f"{verb}_peak_mb", round(peak_mb))
    record_property(f"{verb}_cpu_s", round(used.ru_utime + used.ru_stime, 1))
    assert 50 < peak_mb < 1000
    (case,) = json.loads(process.stdout.read())["cases"]
    assert case["case"] == "lidc"
