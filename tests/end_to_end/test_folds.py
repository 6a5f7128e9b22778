"""Cross-validation and the ensemble of its models, through the real command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.whole]

Run = Callable[..., Any]
FEWER = ("--set", "split.folds=3", "--set", "train.steps=6")


def test_all_folds_become_one_model(
    liverseg: Run, phantom: Path, tiny: Path, ingested: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    arguments = ["--config", tiny, "--store", store, *FEWER]
    done = liverseg("run", phantom, *arguments, "--fold", "all", "--json").ok().data
    assert done["train"]["members"] == 3
    scored = [case["case"] for case in done["evaluate"]["cases"]]
    assert sorted(scored) == sorted(set(scored))
    assert len(scored) == 6, "every labelled case, by the member that did not train on it"
    assert done["register"]["version"] == 1
    again = liverseg("run", phantom, *arguments, "--fold", "all", "--json").ok().data
    assert all(stage["cached"] for stage in (again["evaluate"], again["train"], again["register"]))
    second = liverseg("evaluate", *arguments, "--fold", 1, "--json").ok().data
    assert second["cached"], "a fold by itself is one of them all"
    table = liverseg("evaluate", *arguments, "--fold", "all").ok()
    assert "6 validation cases" in table.out
    scan = next(store.glob("cases/*/label.nii.gz"))  # any volume will do
    model = ["--model", "models:/liverseg@champion", "--store", store]
    found = liverseg("predict", scan, *model, "-o", tmp_path / "labels.nii.gz", "--json").ok().data
    assert found[0]["liver_ml"] >= 0
    wrong = liverseg("train", *arguments, "--fold", 3)
    assert (wrong.code, wrong.error[:5]) == (2, "LS201")


def test_training_starts_from_a_registered_model(
    liverseg: Run, tiny: Path, stored: Any, tmp_path: Path
) -> None:
    arguments = ["--config", tiny, "--store", stored.path, "--set", "train.steps=4"]
    plain = liverseg("train", *arguments, "--json").ok().data
    start = ["--set", "train.start_from=models:/liverseg/1"]
    tuned = liverseg("train", *arguments, *start, "--json").ok().data
    assert tuned["key"] != plain["key"]
    assert tuned["loss"] < plain["loss"], "100 steps were done before"
    assert liverseg("train", *arguments, *start, "--json").ok().data["cached"]
    missing = liverseg("train", *arguments, "--set", "train.start_from=models:/none/1")
    assert (missing.code, missing.error[:5]) == (2, "LS291")
    other = liverseg("train", *arguments, *start, "--set", "train.network.channels=[4,8,16]")
    assert (other.code, other.error[:5]) == (2, "LS274")
