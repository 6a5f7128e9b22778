"""A corrected spacing: in its case's key alone, and the same millimetres from ingest to evaluation."""

from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.cases.case_record import case_recipe, record
from liverseg_core.cases.data_report import describe
from liverseg_core.cases.ingest import ingest_case
from liverseg_core.cases.store import open_case
from liverseg_core.cases.verify import verify_case
from liverseg_core.config import EvaluateConfig, IngestConfig, NetworkConfig
from liverseg_core.evaluation.evaluate import evaluate
from liverseg_core.models.model import Model, ModelSpec
from liverseg_core.models.networks import build_network
from liverseg_core.sources.source import Source
from liverseg_core.sources.spacing_overrides import override_spacings

TRUE = (1.5, 2.0, 2.5)
HEADER = "case,x,y,z\n"


@pytest.fixture
def source(build: SimpleNamespace, tmp_path: Path) -> Source:
    """Two cases whose headers say 1 mm, flipped along x; `b` is to be corrected."""
    matrix = build.affine("LAS")
    parts = [build.zipped(build.nifti(part, matrix)) for part in build.ball()]
    other = [build.zipped(build.nifti(part[::-1], matrix)) for part in build.ball()]
    cases = build.case(tmp_path, *other, "a"), build.case(tmp_path, *parts, "b")
    return Source(tmp_path, "Toy", cases, 0)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "spacings.csv"
    path.write_text("\ufeffcase, x, y, z\r\nb, 1.5, 2, 2.5\r\n\r\n", encoding="utf-8")
    return path


def test_only_the_named_case_s_key_changes(source: Source, table: Path) -> None:
    corrected = override_spacings(source, str(table))
    plain, named = IngestConfig(), IngestConfig(spacing_overrides=str(table))
    keys = [[case_recipe(case, config).key for case in source.cases] for config in (plain, named)]
    assert keys[0] == keys[1]
    found = [case_recipe(case, named).key for case in corrected.cases]
    assert found[0] == keys[0][0]
    assert found[1] != keys[0][1]
    assert override_spacings(source, None) == source


def test_everything_is_measured_at_the_corrected_spacing(
    build: SimpleNamespace, source: Source, table: Path, tmp_path: Path
) -> None:
    case = override_spacings(source, str(table)).cases[1]
    config = IngestConfig(spacing_mm=(2, 2, 2))
    stored = ingest_case(case, config, LocalStore(tmp_path / "store"))
    facts = stored.facts
    assert facts["native_spacing_mm"] == list(TRUE)
    assert facts["spacing_override_mm"] == list(TRUE)
    assert facts["flags"] == ["spacing-overridden"]
    assert facts["shape"] == [15, 18, 20]
    affine = np.array(facts["native_affine"])
    np.testing.assert_allclose(affine[:, :3], np.diag([-1.5, 2, 2.5, 1])[:, :3])
    np.testing.assert_array_equal(affine[:, 3], build.affine("LAS")[:, 3])
    assert record(stored.key, stored.facts).flagged
    assert verify_case(case, config) == {**facts, "problem": None}
    (row,) = describe([facts])
    reference_ml = (build.ball()[1] > 0).sum() * 7.5 / 1000
    assert row.liver_ml == pytest.approx(reference_ml, abs=0.005)


@pytest.mark.parametrize("axes", [None, "PIR", "RAS"])
def test_evaluation_has_true_millimetres_and_predictions_their_scan_s_header(
    build: SimpleNamespace, source: Source, table: Path, tmp_path: Path, axes: str | None
) -> None:
    if axes:
        table.write_text(f"case,x,y,z,axes\nb,1.5,2,2.5,{axes}\n")
    case = override_spacings(source, str(table)).cases[1]
    config = IngestConfig(spacing_mm=(2, 2, 2))
    stored = ingest_case(case, config, LocalStore(tmp_path / "store"))
    opened = open_case(stored.path)
    assert (opened.spacing_override_mm, opened.axes_override) == (list(TRUE), axes)
    assert stored.facts["orientation"] == (axes or "LAS")
    network = NetworkConfig(channels=(2, 4), residual_units=0)
    spec = ModelSpec(
        network=network, activation="softmax", patch_size=(16, 16, 16), window_hu=(-100, 100), ingest=config,
        data_key="data",
    )  # fmt: skip
    torch.manual_seed(0)
    model = Model(build_network(network).eval(), spec, torch.device("cpu"))
    (tmp_path / "e").mkdir()
    found = evaluate(model, {"b": stored.path}, EvaluateConfig(pictures=1), tmp_path / "e", lambda *_: None)
    label = build.ball()[1]
    (measured,) = found["cases"]
    assert measured["liver"]["reference_volume_ml"] == pytest.approx((label > 0).sum() * 7.5 / 1000)
    prediction = nib.load(tmp_path / "e" / "predictions" / "b.nii.gz")
    assert prediction.shape == label.shape
    np.testing.assert_array_equal(prediction.affine, build.affine("LAS"))
    volume = (np.asanyarray(prediction.dataobj) > 0).sum() * 7.5 / 1000
    assert measured["liver"]["volume_ml"] == pytest.approx(volume)
    assert (tmp_path / "e" / "pictures" / "b.png").exists()


BAD = {
    "no such file": None,
    "no header": "b,1,1,1\n",
    "another column": "case,z,y,x\nb,1,1,1\n",
    "empty": "",
    "a word": HEADER + "b,1,1,thick\n",
    "too few": HEADER + "b,1,1\n",
    "too many": HEADER + "b,1,1,1,1\n",
    "NaN": HEADER + "b,nan,1,1\n",
    "0": HEADER + "b,1,0,1\n",
    "metres": HEADER + "b,1,1,1e3\n",
    "twice": HEADER + "b,1,1,1\nb,2,2,2\n",
    "no axes": "case,x,y,z,axes\nb,1,1,1,north\n",
    "axes twice": "case,x,y,z,axes\nb,1,1,1,LPL\n",
    "two axes": "case,x,y,z,axes\nb,1,1,1,LP\n",
    "axes nowhere": HEADER + "b,1,1,1,LPS\n",
    "neither": "case,x,y,z,axes\nb,,,,\n",
    "half a spacing": "case,x,y,z,axes\nb,1,,,LPS\n",
    "unknown": HEADER + "liver_28,1,1,1\n",
}


@pytest.mark.parametrize("name", BAD)
def test_unusable_files(build: SimpleNamespace, source: Source, tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.csv"
    if BAD[name] is not None:
        path.write_text(BAD[name])
    assert build.refusal(override_spacings, source, str(path)) == "LS212"


def test_latin_1_is_no_utf_8(build: SimpleNamespace, source: Source, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_bytes(HEADER.encode() + b"b\xe9,1,1,1\n")
    assert build.refusal(override_spacings, source, str(tmp_path / "bad.csv")) == "LS212"
