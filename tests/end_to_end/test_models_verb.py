"""`liverseg models`: what there is, which is champion, and the way back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

Run = Callable[..., Any]
NAME = {"LIVERSEG_REGISTER__MODEL": "verbs"}
QUICK = ("--set", "train.learning_rate=0.01", "--set", "train.steps=8")


@pytest.fixture(scope="module")
def models(liverseg: Run, stored: Any) -> Run:
    """`liverseg models` on a registered model of this module's own: version 1 is good, version 2 is not."""
    settings = ["--config", stored.config, "--store", stored.path]
    first = liverseg("register", *settings, "--json", **NAME).ok().data
    second = liverseg("register", *settings, *QUICK, "--json", **NAME).ok().data
    assert (first["aliases"], first["against"]) == (["candidate", "champion"], None)
    assert (second["version"], second["aliases"]) == (2, ["candidate"])
    against = second["against"]
    assert (against["name"], against["version"], len(against["evaluation_key"])) == ("verbs", 1, 32)
    assert second["reason"].startswith("not champion: mean Dice -")
    return lambda verb, *arguments, **more: liverseg(
        "models", verb, *arguments, "--store", stored.path, **NAME, **more
    )


@pytest.fixture
def holders(stored: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, int]]:
    """Which version has which alias, as MLflow says."""
    from tasks.registry.tracking import connect

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    connect(None, stored.path, "liverseg")
    from mlflow import MlflowClient

    return lambda: {
        alias: int(of) for alias, of in MlflowClient().get_registered_model("verbs").aliases.items()
    }


def test_a_version_answers_the_questions(models: Run) -> None:
    listed = models("list").ok().out
    assert [line.split("│")[1].strip() for line in listed.splitlines() if line.startswith("│")] == ["2", "1"]
    found = models("show", "2", "--json").ok().data
    answers = found["answers"]
    assert answers["Which data"].startswith("Liver phantom, 4 training and 2 validation cases; data key ")
    assert answers["Which code"].startswith("commit ")
    assert answers["Which recipe"].startswith(
        "unet, 8 steps of 2 patches of 32 × 32 × 32 voxels, dice_ce, adamw"
    )
    assert answers["How good"].startswith("liver with tumour Dice 0.")
    assert answers["Against whom"].startswith("not champion: mean Dice -")
    shown = models("show", "models:/verbs@champion").ok().out
    assert "version 1 of verbs" in shown
    assert "champion: there was none" in shown


def test_a_worse_one_is_refused_unless_forced_and_rollback_brings_the_champion_back(
    models: Run, holders: Callable[[], dict[str, int]]
) -> None:
    refused = models("promote")
    assert (refused.code, refused.error[:5]) == (9, "LS901")
    assert "verbs version 2 is not champion: mean Dice -" in refused.error
    assert holders() == {"candidate": 2, "champion": 1}

    forced = models("promote", "2", "--force").ok()
    assert "verbs version 2 (candidate, champion): champion: forced, though not champion" in forced.err
    assert holders() == {"candidate": 2, "champion": 2, "previous": 1}

    ended = models("rollback").ok()
    assert "champion of verbs: version 2 → version 1; previous: 2" in ended.err
    assert "equals the one that was registered with it" in ended.err
    assert holders() == {"candidate": 2, "champion": 1, "previous": 2}

    limits = [f"register.{name}=1" for name in ("tolerance", "liver_loss", "tumour_loss")]
    allowed = models("promote", "2", "--json", *(part for one in limits for part in ("--set", one))).ok()
    assert allowed.data["reason"].startswith("champion: mean Dice -")
    again = models("rollback", "--json").ok().data
    assert (again["champion"]["version"], again["previous"]["version"], again["differing_voxels"]) == (
        1,
        2,
        0,
    )


def test_what_there_is_not(models: Run, liverseg: Run, tmp_path: Path) -> None:
    missing = models("show", "99")
    assert (missing.code, missing.error[:5]) == (2, "LS291")
    nothing = liverseg("models", "rollback", "--store", tmp_path / "nothing")
    assert (nothing.code, nothing.error[:5]) == (2, "LS294")
    assert liverseg("models", "list", "--store", tmp_path / "nothing", "--json").ok().data == []
    assert not (tmp_path / "nothing").exists()
