"""Folds, and their models as one."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.cases.case_record import CaseRecord
from liverseg_core.cases.split import draw_folds, split_cases
from liverseg_core.config import IngestConfig, NetworkConfig, SplitConfig
from liverseg_core.models.ensemble import combine
from liverseg_core.models.model import ModelSpec, load_model, save_model
from liverseg_core.models.networks import build_network

NETWORK = NetworkConfig(channels=(4, 8), residual_units=0)


def records(count: int) -> list[CaseRecord]:
    return [CaseRecord(f"c{i}", f"key{i}", True, i % 10 > 0, i % 5 == 2, f"v{i}") for i in range(count)]


@pytest.mark.parametrize("count", [5, 131])
def test_folds_share_every_stratum(count: int) -> None:
    cases = {case.case: case for case in records(count)}
    folds = draw_folds([*cases.values()], SplitConfig())
    assert sorted(itertools.chain(*folds)) == sorted(cases)
    assert max(map(len, folds)) - min(map(len, folds)) <= 1
    for stratum in ({"tumour": False}, {"flagged": True}):
        ((name, value),) = stratum.items()
        counts = [sum(getattr(cases[case], name) is value for case in fold) for fold in folds]
        assert max(counts) - min(counts) <= 2
    assert draw_folds([*reversed(cases.values())], SplitConfig()) == folds
    assert draw_folds([*cases.values()], SplitConfig(seed=1)) != folds


def test_every_case_validates_once_and_folds_are_frozen(tmp_path: Path, build: SimpleNamespace) -> None:
    store, cases = LocalStore(tmp_path), records(23)
    for grown in (cases, [*cases, *(CaseRecord("new", "knew", True, True, False, "vnew"),)]):
        validated = []
        for k in range(5):
            facts = split_cases("d", grown, SplitConfig(fold=k), store).facts
            names = {group: {case["case"] for case in facts[group]} for group in ("training", "validation")}
            assert not names["training"] & names["validation"]
            assert names["training"] | names["validation"] == {case.case for case in grown}
            validated += names["validation"]
        assert sorted(validated) == sorted(case.case for case in cases), "what comes later trains"
    assert build.refusal(draw_folds, cases[:4], SplitConfig()) == "LS331"


def model(folder: Path, seed: int, activation: str = "softmax", **changed: object) -> Path:
    folder.mkdir()
    spec = {
        "network": NETWORK,
        "activation": activation,
        "patch_size": (16, 16, 16),
        "window_hu": (-100, 200),
    }
    spec |= {"ingest": IngestConfig(), "data_key": str(seed), **changed}
    save_model(folder, build_network(NETWORK, seed), ModelSpec.model_validate(spec))
    return folder


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_an_ensemble_averages_probabilities(tmp_path: Path, activation: str) -> None:
    members = [model(tmp_path / str(seed), seed, activation) for seed in range(3)]
    (tmp_path / "e").mkdir()
    assert combine(members, tmp_path / "e") == {"members": 3}
    whole = load_model(tmp_path / "e", "cpu")
    assert whole.spec.members == 3
    x = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    normalise = torch.sigmoid if activation == "sigmoid" else lambda logits: torch.softmax(logits, 1)
    with torch.no_grad():
        each = [normalise(load_model(path, "cpu").network(x)) for path in members]
        torch.testing.assert_close(normalise(whole.network(x)), torch.stack(each).mean(0), atol=1e-5, rtol=0)


def test_models_of_two_kinds_do_not_combine(tmp_path: Path, build: SimpleNamespace) -> None:
    first = model(tmp_path / "a", 0)
    other = model(tmp_path / "b", 1, patch_size=(32, 32, 32))
    assert build.refusal(combine, [first, other], tmp_path) == "LS276"
    (tmp_path / "e").mkdir()
    combine([first, model(tmp_path / "c", 2)], tmp_path / "e")
    assert build.refusal(combine, [tmp_path / "e", first], tmp_path) == "LS276", "no ensemble of ensembles"
