"""`liverseg predict`: what it writes and prints, many scans at once, and scans that are broken."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from tiny_model import tiny_spec, write_tiny_model

from liverseg_core.config import EvaluateConfig
from liverseg_core.models.model import INFERENCE

SPARED = {"nibabel", "pydicom", "numba", "zarr", "mlflow", "prefect", "distributed", "torchio", "matplotlib"}
"""Libraries that a small scan needs none of; each takes a good part of a second or of 100 MB."""
DRIVER = """
import atexit, sys
from flows.cli import main
atexit.register(lambda: print(*{name.partition(".")[0] for name in sys.modules}, file=sys.stderr))
main()
"""
VALUES = {"liver_ml", "tumour_ml", "burden", "lesions", "largest_diameter_mm"}
KEYS = VALUES | {"image", "label", "flags", "remarks"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that was never trained, whose labels are of all classes."""
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder, tiny_spec(16, 2))
    (folder / INFERENCE).write_text(json.dumps(EvaluateConfig(overlap=0.5).canonical()))
    return folder


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scan, the same scan stored otherwise, and what is no scan."""
    folder = tmp_path_factory.mktemp("scans")
    affine = np.diag([1.5, 1.2, 2.5, 1])
    affine[:3, 3] = (-20, 30, 7)
    smooth = np.random.default_rng(0).normal(0, 1, (8, 9, 7)).repeat(5, 0).repeat(4, 1).repeat(3, 2)
    plain = nib.Nifti1Image(np.rint(smooth * 150 + 50).astype(np.int16), affine)
    nib.save(plain, folder / "plain.nii.gz")
    turned = plain.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    nib.save(turned, folder / "turned.nii.gz")
    (folder / "broken.nii.gz").write_bytes((folder / "plain.nii.gz").read_bytes()[:-300])
    (folder / "._plain.nii.gz").write_bytes(b"junk")
    (folder / "notes.txt").write_text("no scan")
    return folder


@pytest.fixture(scope="module")
def real() -> Path:
    """The folder of real files; skips where there is none."""
    folder = Path(os.environ.get("LIVERSEG_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real files: set LIVERSEG_REAL_DATA")
    return folder


def canonical(path: str | Path) -> nib.Nifti1Image:
    return nib.as_closest_canonical(nib.load(path))


def test_a_folder_of_scans_of_which_one_is_broken(
    liverseg: Callable[..., Any], model: Path, scans: Path, tmp_path: Path
) -> None:
    """The others are done and listed; the broken one is named, leaves nothing, and makes the exit code 8."""
    out = tmp_path / "out"
    ended = liverseg(
        "predict", scans, "--model", model, "-o", out, "--probabilities", "--uncertainty", "--json"
    )
    assert ended.code == 8, ended.err
    assert "broken.nii.gz" in ended.error
    assert "LS311" in ended.error
    plain, turned = ended.data
    assert set(plain) == KEYS | {"probabilities", "uncertainty"}
    files = {
        f"{name}{what}.nii.gz"
        for name in ("plain", "turned")
        for what in ("", "_probabilities", "_uncertainty")
    }
    assert {path.name for path in out.iterdir()} == files

    # what was stored flipped and permuted has the same values at the same places in the patient
    for what in ("label", "probabilities", "uncertainty"):
        one, other = canonical(plain[what]), canonical(turned[what])
        np.testing.assert_allclose(one.affine, other.affine, atol=1e-4)
        np.testing.assert_array_equal(one.get_fdata(), other.get_fdata())
        scan = nib.load(scans / "turned.nii.gz")
        np.testing.assert_array_equal(nib.load(turned[what]).affine, scan.affine)
        assert nib.load(turned[what]).shape[:3] == scan.shape
    assert {name: plain[name] for name in VALUES} == pytest.approx({name: turned[name] for name in VALUES})

    label = np.asarray(nib.load(plain["label"]).dataobj)
    shares = nib.load(plain["probabilities"]).get_fdata()
    assert set(np.unique(label)) == {0, 1, 2}
    np.testing.assert_allclose(shares.sum(-1), 1, atol=4e-5)
    second, first = np.sort(shares, axis=-1)[..., -2:].transpose(3, 0, 1, 2)
    sure = first - second > 1e-4
    np.testing.assert_array_equal(shares.argmax(-1)[sure], label[sure])
    entropy = -(shares * np.log(np.maximum(shares, 1e-9))).sum(-1) / np.log(3)
    np.testing.assert_allclose(nib.load(plain["uncertainty"]).get_fdata(), entropy, atol=0.003)

    voxel_ml = 1.5 * 1.2 * 2.5 / 1000
    assert plain["liver_ml"] == pytest.approx((label > 0).sum() * voxel_ml, rel=1e-5)
    assert plain["tumour_ml"] == pytest.approx((label == 2).sum() * voxel_ml, rel=1e-5)
    assert plain["burden"] == pytest.approx(plain["tumour_ml"] / plain["liver_ml"])
    assert plain["lesions"] >= 1
    assert 1 < plain["largest_diameter_mm"] < math.dist((0, 0), (40 * 1.5, 36 * 1.2))


@pytest.mark.parametrize("verb", ["predict", "score"])
def test_a_small_scan_imports_nothing_that_it_does_not_need(
    verb: str, model: Path, scans: Path, tmp_path: Path, command_environment: dict[str, str]
) -> None:
    """No time is measured, but what takes it."""
    scan, label = scans / "plain.nii.gz", tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image(np.eye(9, dtype=np.uint8)[:, :, None], np.eye(4)), label)
    asked = {"predict": (scan, "--model", model, "-o", tmp_path / "out.nii.gz"), "score": (label, label)}
    command = [sys.executable, "-P", "-c", DRIVER, verb, *map(str, asked[verb])]
    done = subprocess.run(command, env=command_environment, capture_output=True, text=True, check=True)
    imported = set(done.stderr.splitlines()[-1].split())
    assert {"flows", "numpy"} <= imported
    assert not imported & SPARED
    assert ("torch" in imported) == (verb == "predict")


@pytest.mark.whole
@pytest.mark.slow
def test_over_dask_it_is_the_same(
    liverseg: Callable[..., Any], model: Path, scans: Path, tmp_path: Path
) -> None:
    """Byte for byte, and the broken one stops none of the others."""
    arguments = ("predict", scans, "--model", model, "--probabilities", "--json")
    serial = liverseg(*arguments, "-o", tmp_path / "serial")
    dask = liverseg(*arguments, "-o", tmp_path / "dask", "--workers", 2)
    assert serial.code == dask.code == 8, dask.err
    assert "LS311" in dask.error
    names = sorted(path.name for path in (tmp_path / "serial").iterdir())
    assert sorted(path.name for path in (tmp_path / "dask").iterdir()) == names
    for name in names:
        one, other = (nib.load(tmp_path / way / name).get_fdata() for way in ("serial", "dask"))
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_a_table_for_people(liverseg: Callable[..., Any], model: Path, scans: Path, tmp_path: Path) -> None:
    ended = liverseg(
        "predict", scans / "plain.nii.gz", "--model", model, "-o", tmp_path / "label.nii.gz"
    ).ok()
    for heading in VALUES | {"label", "remarks"}:
        assert heading in ended.out
    assert str(tmp_path / "label.nii.gz") in ended.out
    assert "not a medical device" in ended.err


@pytest.mark.parametrize(("given", "code"), [("empty", "LS352"), ("scans", "LS208")])
def test_what_cannot_be_predicted(
    liverseg: Callable[..., Any], model: Path, scans: Path, tmp_path: Path, given: str, code: str
) -> None:
    """A folder without a scan; labels that would take the scans' place."""
    (tmp_path / "empty").mkdir()
    folder, out = (tmp_path / "empty", tmp_path / "out") if given == "empty" else (scans, scans)
    before = sorted(path.name for path in scans.iterdir())
    ended = liverseg("predict", folder, "--model", model, "-o", out)
    assert ended.code == int(code[2])
    assert code in ended.error
    assert sorted(path.name for path in scans.iterdir()) == before


REAL = {
    "example": "totalseg_example/example_ct.nii.gz",
    "cut": "totalseg_example/example_ct_sm.nii.gz",
    "full_size": "lidc0314_lower/lidc0314_lower110_ct.nii.gz",
    "three_slices": "dcmqi_ct3slice/dcmqi3_ct.nii.gz",
}


@pytest.mark.whole
def test_real_scans_keep_their_geometry(
    liverseg: Callable[..., Any], model: Path, real: Path, tmp_path: Path
) -> None:
    """One at full resolution, one of three slices, one whose floats are stored as int32."""
    paths = [real / file for file in REAL.values()]
    ended = liverseg("predict", *paths, "--model", model, "-o", tmp_path, "--uncertainty", "--json").ok()
    for path, found in zip(paths, ended.data, strict=True):
        scan = nib.load(path)
        for what in ("label", "uncertainty"):
            written = nib.load(found[what])
            assert written.shape == scan.shape
            for form in ("qform", "sform"):
                assert int(written.header[f"{form}_code"]) == int(scan.header[f"{form}_code"])
            np.testing.assert_array_equal(written.affine, scan.affine)
        assert set(np.unique(nib.load(found["label"]).dataobj)) <= {0, 1, 2}
        shares = nib.load(found["uncertainty"]).get_fdata()
        assert shares.min() >= 0
        assert 0.1 < shares.max() <= 1 + 1e-6
