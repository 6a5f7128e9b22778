"""A model knows which scans it was shown, whatever they are called and however they lie."""

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

Run = Callable[..., Any]
CHAMPION = "models:/liverseg@champion"


@pytest.fixture(scope="module")
def scans(stored: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scans and labels that the store was made of."""
    folder = tmp_path_factory.mktemp("scans")
    with tarfile.open(stored.source) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("*/imagesTr")).parent


@pytest.fixture(scope="module")
def split(liverseg: Run, stored: Any) -> dict[str, list[str]]:
    """Which cases the champion was trained and validated on."""
    again = liverseg("run", stored.source, "--config", stored.config, "--store", stored.path, "--json").ok()
    groups = ("training", "validation", "unlabelled")
    return {group: [one["case"] for one in again.data["split"][group]] for group in groups}


def mirrored(scan: Path, path: Path) -> Path:
    """The same voxels, stored otherwise and under a header that says nothing true."""
    voxels = np.asarray(nib.load(scan).dataobj)[::-1].transpose(1, 0, 2)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(voxels), np.diag([2, 2, 5, 1])), path)
    return path


def test_a_model_knows_what_it_was_shown(
    liverseg: Run, stored: Any, scans: Path, split: dict[str, list[str]], tmp_path: Path
) -> None:
    trained, chosen, other = (split[group][0] for group in ("training", "validation", "unlabelled"))
    copied = mirrored(scans / "imagesTr" / f"{trained}.nii.gz", tmp_path / "somebody.nii.gz")
    paths = [
        scans / "imagesTr" / f"{trained}.nii.gz",
        copied,
        scans / "imagesTr" / f"{chosen}.nii.gz",
        scans / "imagesTs" / f"{other}.nii.gz",
    ]
    asked = liverseg("seen", CHAMPION, *paths, "--store", stored.path, "--json").ok().data
    assert [Path(one["image"]) for one in asked] == paths
    assert all(one["known"] and one["complete"] for one in asked)
    assert [[(case["case"], case["role"], case["before"]) for case in one["seen"]] for one in asked] == [
        [(trained, "training", False)], [(trained, "training", False)], [(chosen, "validation", False)], [],
    ]  # fmt: skip
    table = liverseg("seen", CHAMPION, *paths, "--store", stored.path).ok()
    assert table.out.count("training") == 2
    assert "not seen" in table.out

    model = ["--model", CHAMPION, "--store", stored.path]
    ended = liverseg("predict", *paths[1:], *model, "-o", tmp_path / "out", "--json").ok()
    flags = [set(one["flags"]) & {"seen-in-training", "seen-in-validation"} for one in ended.data]
    assert flags == [{"seen-in-training"}, {"seen-in-validation"}, set()]
    assert f"this scan trained the model, as case {trained}" in ended.err
    label = tmp_path / "out" / f"{chosen}.nii.gz"
    scored = liverseg("score", label, scans / "labelsTr" / label.name)
    assert "its label says seen-in-validation" in scored.err


def test_a_model_that_does_not_know(liverseg: Run, stored: Any, scans: Path, tmp_path: Path) -> None:
    """As those that were trained before models kept it; a bad scan among others is named."""
    kept = next(path.parent for path in stored.path.glob("models/*/manifest.json"))
    older = tmp_path / "older"
    older.mkdir()
    for name in ("model.json", "model.safetensors"):
        shutil.copy(kept / name, older)
    scan = next(scans.glob("imagesTr/liver_*.nii.gz"))
    (tmp_path / "bad.nii").write_bytes(b"no scan")
    ended = liverseg("seen", older, tmp_path / "bad.nii", scan, "--json")
    assert ended.code == 8
    assert "bad.nii: LS312" in ended.error
    assert ended.data == [{"image": str(scan), "known": False, "complete": False, "seen": []}]
    told = liverseg("seen", older, scan).ok()
    assert "not known" in told.out
    assert "train it again to know" in told.err
    assert "seen-in" not in liverseg("predict", scan, "--model", older, "-o", tmp_path / "a.nii.gz").out


def test_the_version_carries_what_it_knows(stored: Any) -> None:
    """Beside the weights in the registry, and checked with them; validation cases are not doubted as such."""
    known = {path.read_text() for path in stored.path.glob("mlflow-artifacts/**/seen.json")}
    assert known  # of several versions, when other tests have registered theirs
    assert known <= {path.read_text() for path in stored.path.glob("models/*/seen.json")}
    for cases in (json.loads(seen)["cases"] for seen in known):
        assert {case["role"] for case in cases} == {"training", "validation"}
        assert all(case["identity"] and case["liver_ml"] > 0 for case in cases)
    measured = json.loads(next(stored.path.glob("mlflow-artifacts/**/measured.json")).read_text())
    assert measured["cases"] == 2
    low, high = measured["liver_ml"]
    assert 0 < low <= high
    metrics = json.loads(next(stored.path.glob("evaluations/*/metrics.json")).read_text())
    assert all("seen-in-validation" not in case["flags"] for case in metrics["cases"])
    assert "flags" in next(stored.path.glob("evaluations/*/cases.csv")).read_text().splitlines()[0]
