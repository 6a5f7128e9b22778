"""Rules chosen on the validation cases: from predictions without any, recorded with what was measured."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.cases.ingest import ingest_case
from liverseg_core.config import EvaluateConfig, IngestConfig, NetworkConfig
from liverseg_core.errors import LiversegError
from liverseg_core.evaluation.evaluate import RAW, WORTHS, evaluate, pool
from liverseg_core.inference.postprocess import RULES, postprocess
from liverseg_core.inference.predict import segment
from liverseg_core.models.known_data import read_known
from liverseg_core.models.model import INFERENCE, Model, ModelSpec
from liverseg_core.volumes.nifti import decode

KEEP = IngestConfig(spacing_mm=None)
SPACING = (2.0, 1.5, 3.0)


class NearestMean(nn.Module):
    """The class whose HU is nearest: 0, 50 or 100. Wrong wherever the noise is large."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        NearestMean.calls += len(x)
        hu = (x + 1) * 150 - 100
        return torch.cat([-((hu - mean) ** 2) for mean in (0, 50, 100)], 1) / 100


@pytest.fixture
def model() -> Model:
    spec = ModelSpec(
        network=NetworkConfig(channels=(4, 8)),
        activation="softmax",
        patch_size=(16, 16, 16),
        window_hu=(-100, 200),
        ingest=KEEP,
        data_key="none",
    )
    return Model(NearestMean(), spec, torch.device("cpu"))


@pytest.fixture
def cases(build: Any, tmp_path: Path) -> dict[str, tuple[Path, bytes]]:
    """Stored cases of noisy balls, and their scans."""
    found = {}
    for name, shape in (("a", (20, 18, 16)), ("b", (24, 18, 14))):
        image, label = build.ball(shape)
        scan, truth = (build.nifti(data, build.affine("LPS", SPACING)) for data in (image, label))
        source = build.case(tmp_path / "files", scan, truth, name)
        found[name] = ingest_case(source, KEEP, LocalStore(tmp_path / "store")).path, scan
    return found


def run(model: Model, folder: Path, cases: dict[str, Path], **settings: Any) -> dict[str, Any]:
    """An evaluation, and the rules that it records."""
    folder.mkdir(exist_ok=True)
    config = EvaluateConfig(overlap=0, pictures=0, air_hu=None, **settings)
    facts = evaluate(model, cases, config, folder, lambda _done, _total: None)
    recorded = json.loads((folder / INFERENCE).read_text())
    return {"rules": {name: recorded[name] for name in RULES[0]}, "recorded": recorded, **facts}


def test_the_best_rules_are_found_recorded_and_used(
    model: Model, cases: dict[str, tuple[Path, bytes]], tmp_path: Path
) -> None:
    stored = {name: path for name, (path, _) in cases.items()}
    worth = {}
    for n, rules in enumerate(RULES):
        summary = run(model, tmp_path / str(n), stored, **rules)["summary"]
        worth[n] = sum(summary[group]["policies"]["lits"]["mean"] for group in ("liver", "tumour"))
    tuned = run(model, tmp_path / "tuned", stored, tune=True)
    best = max(worth, key=lambda n: round(worth[n], 9))
    assert worth[best] > worth[0] + 0.1
    assert tuned["rules"] == RULES[best]
    assert all("implausible-liver" in case["flags"] for case in tuned["cases"])
    measured = read_known(tmp_path / "tuned").measured
    assert measured
    assert measured.cases == 2
    chosen = EvaluateConfig(**tuned["recorded"])
    for name, (_, scan) in cases.items():
        found = np.asarray(nib.load(tmp_path / "tuned" / "predictions" / f"{name}.nii.gz").dataobj)
        plain = segment(model, decode(scan, name))
        np.testing.assert_array_equal(found, postprocess(plain, chosen, SPACING))
        assert not np.array_equal(found, plain)
    assert not (tmp_path / "tuned" / RAW).exists()


def test_interrupted_tuning_goes_on(
    model: Model, cases: dict[str, tuple[Path, bytes]], tmp_path: Path
) -> None:
    """No case is predicted twice: not for its rules and its score, and not after a kill."""
    stored = {name: path for name, (path, _) in cases.items()}
    NearestMean.calls = 0
    run(model, tmp_path / "whole", stored, tune=True)
    once = NearestMean.calls
    with pytest.raises(LiversegError, match="LS504"):
        run(model, tmp_path / "killed", stored | {"c": tmp_path / "nowhere"}, tune=True)
    assert NearestMean.calls == 2 * once
    run(model, tmp_path / "killed", stored, tune=True)
    assert NearestMean.calls == 2 * once
    names = ["inference.json", "metrics.json", "rules.json", "cases.csv"]
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_folds_together_get_the_rules_that_are_best_for_all(
    model: Model, cases: dict[str, tuple[Path, bytes]], tmp_path: Path
) -> None:
    stored = {name: path for name, (path, _) in cases.items()}
    whole = run(model, tmp_path / "whole", stored, tune=True)
    for name, path in stored.items():
        run(model, tmp_path / name, {name: path}, tune=True)
    (tmp_path / "pooled").mkdir()
    config = EvaluateConfig(overlap=0, pictures=0, air_hu=None, tune=True)
    pool([tmp_path / name for name in stored], config, tmp_path / "pooled")
    assert json.loads((tmp_path / "pooled" / INFERENCE).read_text()) == whole["recorded"]
    assert (tmp_path / "pooled" / WORTHS).read_bytes() == (tmp_path / "whole" / WORTHS).read_bytes()
