"""The order of the stages: each gets what those before it made, for every way of following it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.order import Stages, follow
from liverseg_core.config import Settings
from liverseg_core.runners import SerialRunner
from tasks.context import Context, Record
from tasks.ensemble import Fold

EACH = [f"{stage} {k}" for k in range(3) for stage in ("split", "train", "evaluate")]
ALL_FOLDS = ["ingest all", *EACH, "ensemble all", "register all", "report all"]
ONE_FOLD = ["ingest 1", "split 1", "train 1", "evaluate 1", "register 1", "report 1"]


def a_context(fold: object) -> Context:
    settings = Settings.model_validate({"split": {"fold": fold, "folds": 3}})
    return Context(settings, SerialRunner, report=None)  # type: ignore[arg-type]


@pytest.fixture
def done() -> list[str]:
    """The stages that were done, in order, each with its fold."""
    return []


@pytest.fixture
def do(done: list[str]) -> Stages:
    """Stages that write down that they were done, and of what."""

    def stage(name: str) -> Any:
        def make(context: Context, *inputs: Any) -> Record:
            done.append(f"{name} {context.settings.split.fold}")
            return {"stage": done[-1], "of": inputs}

        return make

    def ensemble(context: Context, folds: list[Fold]) -> Record:
        stage("ensemble")(context)
        parts = ("dataset", "model", "evaluation")
        return {
            part: {"stage": f"all {part}s", "of": [getattr(fold, part) for fold in folds]} for part in parts
        }

    names = ("ingest", "split", "train", "evaluate", "register", "report")
    return Stages(**{name: stage(name) for name in names}, ensemble=ensemble)


def test_one_fold(do: Stages, done: list[str]) -> None:
    made = follow(a_context(1), do)
    assert done == ONE_FOLD
    cases, dataset, model, evaluation, version, page = made.values()
    assert list(made) == ["ingest", "split", "train", "evaluate", "register", "report"]
    assert dataset["of"] == (cases,)
    assert model["of"] == (dataset,)
    assert evaluation["of"] == (dataset, model)
    assert version["of"] == (dataset, model, evaluation)
    assert page["of"] == (cases, Fold(dataset, model, evaluation), version)


def test_all_folds_are_registered_as_one(do: Stages, done: list[str]) -> None:
    made = follow(a_context("all"), do)
    assert done == ALL_FOLDS
    assert [model["stage"] for model in made["train"]["of"]] == ["train 0", "train 1", "train 2"]
    united = [made[name] for name in ("split", "train", "evaluate")]
    assert [part["stage"] for part in united] == ["all datasets", "all models", "all evaluations"]
    assert made["register"]["of"] == tuple(united)
    assert made["report"]["of"] == (made["ingest"], Fold(*united), made["register"])


@pytest.mark.parametrize(
    ("last", "left_out", "gives"),
    [
        ("ingest", ("split", "train", "evaluate", "ensemble", "register", "report"), "ingest all"),
        ("split", ("train", "evaluate", "ensemble", "register", "report"), "split 2"),
        ("train", ("evaluate", "ensemble", "register", "report"), "train 2"),
        ("evaluate", ("register", "report"), "all evaluations"),
        ("register", ("report",), "register all"),
        ("report", (), "report all"),
    ],
)
def test_a_verb_does_what_leads_to_it(
    do: Stages, done: list[str], last: str, left_out: tuple[str, ...], gives: str
) -> None:
    assert follow(a_context("all"), do.until(last))[last]["stage"] == gives
    assert done == [one for one in ALL_FOLDS if one.split()[0] not in left_out]
    done.clear()
    assert follow(a_context(1), do.until(last))[last]["stage"] == f"{last} 1"
    assert done == [one for one in ONE_FOLD if one.split()[0] not in left_out]


def test_what_is_known_is_not_done_again(do: Stages, done: list[str]) -> None:
    """Retraining looks at the data first."""
    looked = follow(a_context(1), do.until("split"))
    data = {name: looked[name] for name in ("ingest", "split")}
    made = follow(a_context(1), do.given(data))
    assert done == ONE_FOLD
    assert {name: made[name] for name in data} == data


def test_single_verbs_need_no_prefect(tmp_path: Path) -> None:
    """Its import would take longer than all that they do when there is nothing to do."""
    script = f"""
import sys
from flows.commands.stages import bring_up_to_date
from liverseg_core.config import Settings
from liverseg_core.errors import LiversegError
try:
    bring_up_to_date(Settings(store={str(tmp_path)!r}), "report")
except LiversegError as error:
    print(error.code, "prefect" in sys.modules, "flows.order" in sys.modules)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout == "LS206 False True\n"
