"""Data that grows, changes, shrinks and is poisoned, and what `liverseg retrain` makes of it."""

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytestmark = pytest.mark.slow

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def arriving(liverseg: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight unpacked cases; those that have come are in the folder `data` beside it."""
    folder = tmp_path_factory.mktemp("arriving")
    liverseg("phantom", folder / "all.tar", "--cases", 8, "--unlabelled", 0, "--size", "64,64,40").ok()
    with tarfile.open(folder / "all.tar") as tar:
        tar.extractall(folder / "all", filter="data")
    (found,) = (folder / "all").glob("*/dataset.json")
    found.parent.rename(folder / "whole")
    bring(folder, range(6))
    return folder


def bring(folder: Path, numbers: Any) -> Path:
    """Make `data` hold these cases."""
    data, whole = folder / "data", folder / "whole"
    shutil.rmtree(data, ignore_errors=True)
    listing = json.loads((whole / "dataset.json").read_text())
    names = [f"liver_{number}.nii.gz" for number in numbers]
    for kind in ("imagesTr", "labelsTr"):
        (data / kind).mkdir(parents=True)
        for name in names:
            shutil.copy2(whole / kind / name, data / kind)
    listing["training"] = [case for case in listing["training"] if Path(case["image"]).name in names]
    (data / "dataset.json").write_text(json.dumps(listing | {"numTraining": len(names), "test": []}))
    return data


def relabel(path: Path, change: Callable[[Any], Any]) -> None:
    """Write a label anew."""
    label = nib.load(path)
    nib.Nifti1Image(change(np.asarray(label.dataobj)), label.affine, label.header).to_filename(path)


@pytest.fixture(scope="module")
def again(liverseg: Run, arriving: Path, tiny: Path) -> Run:
    """A function that runs `retrain` on what has come."""

    def call(*more: object) -> Any:
        place = ["--config", tiny, "--store", arriving / "store"]
        return liverseg("retrain", arriving / "data", *place, "--set", "retrain.steps=12", *more, "--json")

    return call


def test_data_come_change_and_go(again: Run, arriving: Path, finished_at: Callable[[Path], Any]) -> None:
    """From nothing to a champion; nothing new; two new cases; a validation case gone; a poisoned batch."""
    first = again().ok().data
    assert first["retrained"]
    assert first["version"] == 1
    assert len(first["difference"]["new"]) == 6
    assert first["register"]["aliases"] == ["candidate", "champion"]

    before = finished_at(arriving / "store")
    idle = again().ok()
    assert not idle.data["retrained"]
    assert idle.data["version"] == 1
    assert "nothing new: version 1 was trained on these data" in idle.err
    assert finished_at(arriving / "store") == before
    assert idle.seconds < 60

    bring(arriving, range(8))
    grown = again().ok().data
    assert grown["retrained"]
    assert grown["ingest"]["made"] == 2
    assert grown["difference"] == {"new": ["liver_6", "liver_7"], "changed": [], "withdrawn": []}
    assert grown["split"]["validation"] == first["split"]["validation"]
    assert grown["train"]["steps"] == 12
    assert grown["register"]["version"] == 2
    assert grown["register"]["against"]["version"] == 1
    manifest = json.loads((arriving / "store/models" / grown["train"]["key"] / "manifest.json").read_text())
    assert manifest["inputs"]["start_from"], "from the champion's weights"
    assert "against version 1 on 2 validation cases" in grown["register"]["reason"]

    champion = 2 if "champion" in grown["register"]["aliases"] else 1
    gone = grown["split"]["validation"][0]["case"]
    staying = [n for n in range(8) if f"liver_{n}" != gone]
    bring(arriving, staying)
    shrunk = again().ok().data
    since = [] if champion == 2 else ["liver_6", "liver_7"]
    assert shrunk["difference"] == {"new": since, "changed": [], "withdrawn": [gone]}
    assert shrunk["ingest"]["made"] == 0
    assert f"against version {champion} on 1 validation case" in shrunk["register"]["reason"]
    page = Path(shrunk["report"]["page"]).read_text()
    assert f"liverseg version {champion} <span" in page, "beside it, by the scores that decided"
    assert "other cases, so its scores" not in page

    champion = 3 if "champion" in shrunk["register"]["aliases"] else champion
    for case in shrunk["split"]["training"]:
        relabel(
            arriving / f"data/labelsTr/{case['case']}.nii.gz",
            lambda label: np.where(label > 0, 0, 1).astype("u1"),
        )
    poisoned = again("--set", "retrain.steps=60").ok().data
    assert poisoned["ingest"]["made"] == len(shrunk["split"]["training"])
    assert poisoned["register"]["aliases"] == ["candidate"]
    assert poisoned["register"]["against"]["version"] == champion
    assert poisoned["register"]["reason"].startswith("not champion: mean Dice -")


def test_folds_are_refused(again: Run) -> None:
    ended = again("--set", "split.fold=all")
    assert ended.code == 2
    assert ended.error.startswith("LS215")
