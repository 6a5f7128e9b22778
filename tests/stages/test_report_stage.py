"""The report as a stage: what it is made from, when it is made again, and what a failure leaves."""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from liverseg_core.artifacts.artifact import load, verify
from liverseg_core.config import Settings
from liverseg_core.errors import ExitCode, LiversegError
from liverseg_core.phantom.dataset import PhantomSpec, write_phantom_tar
from liverseg_core.report.results import number
from liverseg_core.runners import SerialRunner
from tasks.context import Context, Record, fold_contexts
from tasks.ensemble import Fold, ensemble
from tasks.evaluate import evaluate
from tasks.ingest import ingest
from tasks.register import register, seen_cases
from tasks.registry.promotion import Measured
from tasks.registry.report_reference import resolve_report
from tasks.registry.tracking import connect_patiently
from tasks.registry.version_scores import add_scores
from tasks.report import report
from tasks.split import split
from tasks.train import train

RECIPE = {
    "ingest": {"spacing_mm": [6, 6, 6]},
    "split": {"folds": 2, "fold": "all"},
    "train": {"network": {"channels": [4, 8], "residual_units": 0}, "patch_size": [16, 16, 16], "steps": 1},
    "evaluate": {"pictures": 1},
    "report": {"worst": 1, "viewed": 1, "filmed": 1},
    "compute": {"device": "cpu"},
}


class Silent:
    """Tells nobody."""

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Nothing."""

    def finished(self, stage: str, note: str, cached: bool) -> None:
        """Nothing."""


@dataclass(frozen=True)
class World:
    """A store with two folds of two cases, a version for the first fold and one for both."""

    context: Context
    cases: Record
    folds: list[Fold]
    whole: Fold
    first: Record
    second: Record

    def report(self, **version: Any) -> Record:
        """The report of the first version, or of one that differs in this from it."""
        return report(self.context, self.cases, self.folds[0], self.first | version)

    def against(self, fold: int) -> dict[str, Any]:
        """The evaluation of a fold as that of a champion."""
        return {"name": "liverseg", "version": 9, "evaluation_key": self.folds[fold].evaluation["key"]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Everything up to registration, by the stages themselves; each fold trains for one step."""
    import torch

    folder, threads = tmp_path_factory.mktemp("report"), torch.get_num_threads()
    torch.set_num_threads(1)
    write_phantom_tar(folder / "phantom.tar", PhantomSpec(cases=4, unlabelled=0, size=(48, 48, 32)))
    places = {"source": str(folder / "phantom.tar"), "store": str(folder / "store")}
    settings = Settings.model_validate({**RECIPE, **places})
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        context = Context(settings, lambda: contextlib.nullcontext(SerialRunner()), Silent())
        cases, folds = ingest(context), []
        for part in fold_contexts(context):
            dataset = split(part, cases)
            model = train(part, dataset)
            folds.append(Fold(dataset, model, evaluate(part, dataset, model)))
        united = ensemble(context, folds)
        whole = Fold(united["dataset"], united["model"], united["evaluation"])
        first, second = (register(context, *vars(made).values()) for made in (folds[0], whole))
        yield World(context, cases, folds, whole, first, second)
    torch.set_num_threads(threads)


def page(record: Record) -> str:
    return Path(record["page"]).read_text()


def test_a_report_is_an_artifact_that_mlflow_has_too(world: World) -> None:
    made = world.report()
    artifact = load(Path(made["path"]))
    assert artifact is not None
    verify(artifact)
    listed = {entry["path"] for entry in artifact.manifest["files"]}
    assert {"report.html", "model_card.md"} <= listed
    assert {name.partition("/")[0] for name in listed} == {
        "report.html",
        "model_card.md",
        "films",
        "pictures",
    }
    client, run_id = MlflowClient(), world.first["run_id"]
    logged = {item.path for item in client.list_artifacts(run_id, "report")}
    assert logged == {f"report/{name}" for name in ("report.html", "model_card.md", "films", "pictures")}
    assert made["title"] == "liverseg version 1"
    assert made["title"] in page(made)
    assert world.first["reason"] in page(made)
    assert not made["cached"]
    assert world.report()["cached"]


def test_report_and_card_name_no_place_of_this_machine(world: World, tmp_path: Path) -> None:
    """Nor a file's of a case that could not be read, nor a datalist's; but when, how long and on what."""
    settings = world.context.settings
    listed = settings.split.model_copy(
        update={"datalist": str(tmp_path / "lists" / "mine.json"), "fold": None}
    )
    quick = settings.report.model_copy(update={"filmed": 0, "viewed": 0, "worst": 0})
    settings = settings.model_copy(update={"split": listed, "report": quick})
    reason = f"LS303: {settings.source} ends early (imagesTr/liver_9.nii.gz). Allowed: the whole archive"
    bad = {**world.cases, "quarantined": [{"case": "liver_9", "code": "LS303", "reason": reason}]}
    made = replace(world, context=replace(world.context, settings=settings), cases=bad).report()
    card = (Path(made["path"]) / "model_card.md").read_text()
    for text in (page(made), card):
        assert str(Path(str(settings.source)).parent) not in text
        assert str(tmp_path) not in text
        assert "datalist: mine.json" in text
        assert re.search(
            r"20\d\d-\d\d-\d\d \d\d:\d\d UTC in \d+ s on CPU \(1 thread\) with liverseg \d", text
        )
    assert "LS303: phantom.tar ends early (imagesTr/liver_9.nii.gz)" in page(made)


def test_the_folds_models_have_one_report(world: World) -> None:
    """Its evaluation is pooled: the predictions lie with the folds'. The first version had fewer cases."""
    made = report(world.context, world.cases, world.whole, world.second)
    assert made["title"] == "liverseg version 2"
    assert world.second["against"]["version"] == 1
    assert "there are no scores of version 1 on the same validation cases" in page(made)
    assert "compared with to be promoted" not in page(made)


def test_scores_of_a_champion_come_from_its_evaluation(world: World) -> None:
    compared = page(world.report(against=world.against(0)))
    assert "liverseg version 9" in compared
    assert "not in this store" not in compared
    elsewhere = world.against(0) | {"evaluation_key": "0" * 32}
    told = page(world.report(against=elsewhere))
    assert "The evaluation of liverseg version 9 is not in this store" in told
    nothing = page(world.report(against=world.against(0) | {"evaluation_key": None}))
    assert "liverseg version 9" not in nothing, "nothing was compared"


def test_what_decides_a_report_is_in_its_key(world: World) -> None:
    base = world.report()
    settings = world.context.settings
    fewer = settings.model_copy(update={"report": settings.report.model_copy(update={"filmed": 0})})
    other = replace(world, context=replace(world.context, settings=fewer)).report()
    bad = {**world.cases, "quarantined": [{"case": "liver_9", "code": "LS311", "reason": "LS311: a reason"}]}
    quarantined = replace(world, cases=bad).report()
    assert "liver_9" in page(quarantined)
    assert len({base["key"], other["key"], quarantined["key"]}) == 3


def test_a_failure_says_that_the_model_is_registered(world: World) -> None:
    """What is made again after it is the report alone."""
    predictions = Path(world.folds[0].evaluation["path"]) / "predictions"
    changed = {"registration": "another", "key": "f" * 32}
    predictions.rename(predictions.with_name("away"))
    with pytest.raises(LiversegError, match="liverseg version 1 is registered, but has no report") as caught:
        world.report(**changed)
    predictions.with_name("away").rename(predictions)
    assert (caught.value.code, caught.value.exit_code) == ("LS801", ExitCode.PARTIAL)
    assert not world.report(**changed)["cached"]


def test_damage_is_found(world: World) -> None:
    """A changed page by its checksum; a changed manifest before it is used, with its own code."""
    made = world.report(key="e" * 32)
    file = Path(made["page"])
    file.write_bytes(b"X" + file.read_bytes()[1:])
    artifact = load(Path(made["path"]))
    assert artifact is not None
    with pytest.raises(LiversegError, match=r"LS502.*report\.html does not match"):
        verify(artifact)
    manifest = Path(made["path"]) / "manifest.json"
    told = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(told | {"facts": {"title": "another"}}))
    with pytest.raises(LiversegError) as caught:
        world.report(key="e" * 32)
    assert caught.value.code == "LS501"
    manifest.unlink()


def test_a_report_is_found_by_what_it_tells_of(world: World) -> None:
    made = report(world.context, world.cases, world.whole, world.second)
    settings = world.context.settings
    keys = made["key"], world.whole.model["key"], world.whole.evaluation["key"]
    named = "models:/liverseg/2", "models:/liverseg@candidate"
    for reference in (*keys, *(key[:9] for key in keys), *named):
        assert resolve_report(settings, reference).key == made["key"], reference
    for reference in ("0" * 32, "models:/liverseg/7", "models:/nobody@champion", "models:/liverseg"):
        with pytest.raises(LiversegError, match="LS295"):
            resolve_report(settings, reference)
    world.report(key="d" * 32)
    world.report()
    with pytest.raises(LiversegError, match=r"LS296.*\(liverseg version 1\)"):
        resolve_report(settings, world.folds[0].model["key"])


@pytest.mark.trouble("1.14")
def test_what_stands_beside_a_verdict_is_what_decided(world: World) -> None:
    """The champion was measured again, on fewer cases than it was registered with."""
    settings = world.context.settings
    named = settings.register_.model_copy(update={"model": "retrained"})
    context = replace(world.context, settings=settings.model_copy(update={"register_": named}))
    dataset, model, evaluation = vars(world.folds[0]).values()
    assert register(context, dataset, model, evaluation)["aliases"] == ["candidate", "champion"]
    fewer = {**dataset, "key": "f" * 32, "validation": dataset["validation"][:1]}
    again = evaluate(context, fewer, model)
    seen = seen_cases(context.store, {**fewer, "training": []})
    tracking = connect_patiently(context.settings)
    add_scores(tracking, "models:/retrained/1", Measured.of(seen, again["cases"], again["key"]))
    other = settings.evaluate.model_copy(update={"overlap": 0.5})
    quick = {"evaluate": other, "report": settings.report.model_copy(update={"filmed": 0})}
    context = replace(context, settings=context.settings.model_copy(update=quick))
    candidate = evaluate(context, fewer, model)
    version = register(context, fewer, model, candidate)
    assert version["against"] == {"name": "retrained", "version": 1, "evaluation_key": again["key"]}
    told = re.fullmatch(
        r"(?:not )?champion: .* on 1 validation case \(liver (\S+); tumour .*", version["reason"]
    )
    assert told, version["reason"]
    made = report(context, world.cases, Fold(fewer, model, candidate), version)
    text = " ".join(re.sub(r"<[^>]*>", " ", page(made)).split())
    assert "other cases, so" not in text
    assert "retrained version 1 (compared with to be promoted)" in text
    dice = [found["cases"][0]["liver"]["dice"] for found in (candidate, again)]
    assert float(told[1]) == pytest.approx(dice[0] - dice[1], abs=5e-5)
    assert f"difference, case by case {number(dice[0] - dice[1], 4, sign=True)} " in text
    assert "Compared with retrained version 1" in (Path(made["path"]) / "model_card.md").read_text()
