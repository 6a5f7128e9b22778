"""The model card: it says what was measured, by how many cases, what was chosen on them, and no more."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from liverseg_core.cases.data_report import CaseRow
from liverseg_core.config import IngestConfig, NetworkConfig
from liverseg_core.evaluation.measures import score_case, summarise
from liverseg_core.models.model import ModelSpec
from liverseg_core.report.card import model_card
from liverseg_core.report.results import Results
from liverseg_core.report.sources import ReportSources, Rival

SPACING_MM = (2.0, 2.0, 5.0)


def results(tumours: list[bool], invented: bool = False) -> Results:
    """Cases whose prediction misses a tenth of the liver and finds or invents tumours."""
    scores = []
    for at, has_tumour in enumerate(tumours):
        reference = np.zeros((12, 12, 12), np.uint8)
        reference[1:11, 1:11, 1:11] = 1
        prediction = reference.copy()
        prediction[10] = 0
        if has_tumour:
            reference[3:6, 3:6, 3:6] = prediction[3:6, 3:6, 3:6] = 2
        elif invented:
            prediction[3:6, 3:6, 3:6] = 2
        scores.append(score_case(f"v{at}", prediction, reference, SPACING_MM))
    return Results([score.record() for score in scores], summarise(scores))


@pytest.fixture
def sources(tmp_path: Path) -> ReportSources:
    """Of a model of two training cases, measured on two others; without a champion."""
    write_spec(tmp_path, 1)
    rows = [
        CaseRow("t0", True, (9, 9, 9), (0.7, 0.7, 5.0), "RAS", {}, 1400.0, 20.0, 3, ("thick-slices",)),
        CaseRow("t1", True, (9, 9, 9), (0.9, 0.9, 2.5), "LPS", {}, 1600.0, 0.0, 0),
        CaseRow("v0", True, (9, 9, 9), (0.8, 0.8, 3.0), "RAS", {}, 1234.0, 5.0, 1),
        CaseRow("v1", True, (9, 9, 9), (0.8, 0.8, 1.0), "RAS", {}, 1900.0, 5.0, 1),
        CaseRow("bad", True, problem="LS312: broken"),
    ]
    return ReportSources(
        title="liverseg version 4",
        dataset="Liver",
        phantom=False,
        evaluation=tmp_path,
        model=tmp_path,
        resumed_from=[],
        training=["t0", "t1"],
        validation={"v0": tmp_path, "v1": tmp_path},
        data=rows,
        champion=None,
        verdict="champion: there was none",
        provenance={"data key": "d" * 32},
        recipe="train:\n  steps: 8\n",
        links={"MLflow run": "https://example.org/#/runs/1", "script": "javascript:alert(1)"},
    )


def write_spec(folder: Path, members: int) -> None:
    """A model's `model.json`."""
    spec = ModelSpec(
        network=NetworkConfig(),
        activation="softmax",
        patch_size=(96, 96, 64),
        window_hu=(-200, 300),
        ingest=IngestConfig(),
        data_key="d" * 32,
        members=members,
    )
    (folder / "model.json").write_text(json.dumps(spec.canonical()))


def said(sources: ReportSources, results: Results, **changes: Any) -> str:
    """The card in one line."""
    return " ".join(model_card(dataclasses.replace(sources, **changes), results).split())


def test_it_says_what_the_model_is_and_was_trained_on(sources: ReportSources) -> None:
    card = said(sources, results([True, True]))
    for words in (
        "# liverseg version 4 > Research software, not a medical device.",
        "Works at 1 × 1 × 1 mm, in patches of 96 × 96 × 64 voxels, on −200 to 300 HU",
        "Trained on 2 cases; measured on 2 others of the same dataset",
        "Training cases with tumours: 1",
        "Voxels of the training scans: 0.70 to 0.90 mm at their finest, 2.50 to 5.00 mm at their longest",
        "Cases in the dataset: 5; could not be used: 1; flagged: 1",
        "--model models:/liverseg/4",
        "- data key: " + "d" * 32,
        "- MLflow run: <https://example.org/#/runs/1>",
        "Verdict: champion: there was none",
    ):
        assert words in card
    assert "hantom" not in card
    assert "javascript" not in card


def test_measures_are_those_of_the_evaluation(sources: ReportSources) -> None:
    found = results([True, True, False])
    card = said(sources, found)
    dice = found.summary["liver"]["dice"]
    assert dice == pytest.approx(2 * 900 / 1900)
    assert f"| liver with tumour | {dice:.3f} ({dice:.3f} to {dice:.3f}) | 3 |" in card
    assert "| tumour | 1.000 (1.000 to 1.000) | 2 |" in card
    assert "| liver with tumour: RVD, above 0: too much predicted | −0.100 | −0.100 | 3 |" in card
    assert "| All sizes | 2 | 2 | 2 | 2 | 0 |" in card


def test_limits_follow_from_what_there_was(sources: ReportSources) -> None:
    card = said(sources, results([True, True]))
    for words in (
        "2 cases: so few that intervals are rough",
        "No case without a tumour was measured",
        "Measured on voxels 1.00 to 3.00 mm long",
        "Measured on livers of 1234 to 1900 ml",
        "No tumour below 10 mm was among the cases measured.",
        "scanner, contrast phase",
    ):
        assert words in card
    card = said(sources, results([True, False, False], invented=True))
    assert "Cases measured without a tumour: 2; it invented one in 2 of them." in card
    assert "so few" not in said(sources, results([True] * 30))


@pytest.mark.parametrize(
    ("recipe", "chosen"),
    [
        ("evaluate: {tune: true}", "rules that clean its labels"),
        ("train: {choose: best}", "whose weights became the model"),
        ("train: {patience: 3}", "at which training ended"),
        ("train: {choose: last, patience: null}\nevaluate: {tune: false}", ""),
    ],
)
def test_what_was_chosen_on_the_same_cases_is_said(sources: ReportSources, recipe: str, chosen: str) -> None:
    card = said(sources, results([True, True]), recipe=recipe)
    assert ("Chosen on the same cases" in card) == bool(chosen)
    assert chosen in card


def test_an_ensemble_was_not_measured_itself(sources: ReportSources) -> None:
    write_spec(sources.model, 5)
    every = ["t0", "t1", "v0", "v1"]
    card = said(sources, results([True, True]), training=every)
    assert "5 networks (unet), whose probabilities are averaged" in card
    assert "the model itself, have trained on every case and were not measured" in card
    assert "others" not in card.split("## What was measured")[0]


def test_a_phantom_is_called_one(sources: ReportSources) -> None:
    card = said(sources, results([True, True]), phantom=True, champion=Rival("liverseg version 3", []))
    assert "> **Phantom results.** The cases are computed, no patient was scanned." in card
    assert "Trained on 2 computed phantom cases, no patients" in card
    assert "On 2 computed phantom cases" in card
    assert "No scan of a patient was measured." in card
    assert "Compared with liverseg version 3." in card


def test_names_are_text(sources: ReportSources) -> None:
    evil = "<script>alert(1)</script>\n# [x](javascript:1) | `a`"
    changed = dataclasses.replace(sources, title=evil, dataset=evil, verdict=evil, provenance={evil: evil})
    card = model_card(changed, results([True]))
    assert not re.search(r"(?<!\\)<script", card)
    assert not re.search(r"(?<!\\)\[x", card)
    assert len(re.findall(r"^#+ ", card, re.MULTILINE)) == 9


def test_one_case_is_one_case(sources: ReportSources) -> None:
    alone = {"v0": sources.model}
    card = said(sources, results([True]), training=["t0"], validation=alone, phantom=True)
    assert "Trained on 1 computed phantom case, no patients; measured on 1 other of the same dataset" in card
    assert "On 1 computed phantom case, in each scan's own voxels" in card
    assert "1 cases" not in card


def test_what_its_labels_lost_or_gained_is_said(sources: ReportSources) -> None:
    """Of the training cases, and only where it is more than a little."""
    assert "keep in mind" not in said(sources, results([True, True]))
    rows = [dataclasses.replace(row, stored_liver_ml=row.liver_ml) for row in sources.data]
    rows[0] = dataclasses.replace(rows[0], stored_tumour_ml=17.0)
    card = said(sources, results([True, True]), data=rows)
    assert (
        "What to keep in mind of its volumes: - As it was given them, its training labels (2 cases)" in card
    )
    assert "−15 % tumour (−15 % by case)." in card
    assert "% liver" not in card


def test_nothing_measured_is_no_error(sources: ReportSources) -> None:
    card = said(sources, results([False]), data=[], verdict="")
    assert "| tumour | not defined | 0 |" in card
    assert "Verdict" not in card
