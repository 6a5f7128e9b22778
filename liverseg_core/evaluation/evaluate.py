"""How good a model is on the validation cases, in their native space against the source's own labels."""

import csv
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from liverseg_core.allocator import memory_kept
from liverseg_core.arrays import Label
from liverseg_core.artifacts.artifact import Facts
from liverseg_core.cases.store import NATIVE_LABEL, Case, open_case, read_volume
from liverseg_core.cases.target import plan_target
from liverseg_core.config import EvaluateConfig, IngestConfig
from liverseg_core.durable import write_atomically
from liverseg_core.errors import LiversegError, as_coded
from liverseg_core.evaluation.case_view import open_view, read_native
from liverseg_core.evaluation.dice_plot import dice_plot_png
from liverseg_core.evaluation.glossary import measures
from liverseg_core.evaluation.lesions import PRIMARY
from liverseg_core.evaluation.measures import GROUPS, CaseScore, score_case, summarise
from liverseg_core.inference.doubts import doubts, label_facts, second_part
from liverseg_core.inference.findings import findings
from liverseg_core.inference.native_volume import replacing
from liverseg_core.inference.postprocess import best_rules, postprocess, worth_of_rules
from liverseg_core.inference.predict import segment_prepared
from liverseg_core.models.known_data import write_measured
from liverseg_core.models.model import INFERENCE, Model
from liverseg_core.pictures import case_title, overlay_png
from liverseg_core.volumes.nifti import Volume, as_label, read_nifti, write_label
from liverseg_core.words import counted

RAW = "raw"
"""Folder of predictions before any rule, while rules are chosen."""
WORTHS = "rules.json"
"""How good each choice of rules makes each case."""
_REMEDIES = {
    "LS703": "Set evaluate.batch_size to 1, or evaluate where there is more memory; finished cases are kept",
    "LS705": "End what else uses this GPU and run again: finished cases are kept; or evaluate on a larger "
    "one, or with compute.device=cpu",
}
"""By the codes for want of memory."""
Progress = Callable[[int, int], None]
Found = TypeVar("Found")


@memory_kept()
def evaluate(
    model: Model, cases: Mapping[str, Path], config: EvaluateConfig, folder: Path, progress: Progress
) -> Facts:
    """Predict and score every case, then write what people look at.

    A case that an interrupted run finished is not predicted again.

    Args:
        model: From `load_model`.
        cases: Case name → its folder in the store.
        config: The evaluate section.
        folder: Receives `predictions/`, `cases/`, `pictures/`, `metrics.json`, `cases.csv` and the settings
            a registered model is to predict with.
        progress: Called with (done, total).

    Raises:
        LiversegError: LS703 or LS705 when there is too little memory for some cases; the others are done
            then, and not again by the next run. What `segment` raises.
    """
    for name in ("predictions", "cases", "pictures"):
        (folder / name).mkdir(exist_ok=True)
    if config.tune:
        config = _tuned(model, cases, config, folder)
    measured = replace(model, inference=config)
    (folder / INFERENCE).write_text(json.dumps(config.canonical(), indent=1, sort_keys=True) + "\n")
    found = _each(
        cases, lambda name, stored: _evaluate_case(measured, name, stored, folder), config, progress
    )
    records = [*found.values()]
    facts = _write_scores(records, folder)
    scores = map(CaseScore.from_record, records)
    for score in sorted(scores, key=_worth)[: config.pictures]:
        _draw(score, cases[score.case], model.spec.ingest, folder)
    shutil.rmtree(folder / RAW, ignore_errors=True)
    return facts


def _each(
    cases: Mapping[str, Path],
    work: Callable[[str, Path], Found],
    config: EvaluateConfig,
    progress: Progress = lambda _done, _total: None,
) -> dict[str, Found]:
    """What `work` makes of each case; too little memory for one stops the evaluation after the others."""
    found: dict[str, Found] = {}
    failed: dict[str, tuple[str, str]] = {}
    for done, (name, stored) in enumerate(cases.items()):
        progress(done, len(cases))
        try:
            found[name] = work(name, stored)
        except (MemoryError, LiversegError) as error:
            coded = as_coded(name, error)
            if coded.code not in _REMEDIES:
                raise
            failed[name] = coded.code, coded.what  # not the error, which keeps the scan in memory
    progress(len(cases), len(cases))
    if failed:
        code, what = next(iter(failed.values()))
        which = f"no memory for {counted(len(failed), 'validation case')} of {len(cases)}"
        fp16 = ", or set evaluate.precision to fp16" if code == "LS705" and config.precision == "fp32" else ""
        told = f"{which}: {', '.join(failed)} ({what})"
        raise LiversegError(code, told, "memory for every case", _REMEDIES[code] + fp16)
    return found


def pool(evaluations: Sequence[Path], config: EvaluateConfig, folder: Path) -> Facts:
    """Put the evaluations of folds together, each case as the model scored it that did not train on it.

    Args:
        evaluations: What `evaluate` wrote, with no case in two of them.
        config: The evaluate section that all were made with.
        folder: As of `evaluate`; predictions stay where they are.

    With `config.tune` each fold was scored under the rules chosen on its own cases, and the models together
    get those chosen on all.
    """
    (folder / "pictures").mkdir()
    if config.tune:
        worths: dict[str, list[float]] = {}
        for path in evaluations:
            worths |= json.loads((path / WORTHS).read_text())
        (folder / WORTHS).write_text(json.dumps(worths, indent=1) + "\n")
        config = config.model_copy(update=best_rules(worths.values()))
    (folder / INFERENCE).write_text(json.dumps(config.canonical(), indent=1, sort_keys=True) + "\n")
    found = [json.loads((path / "metrics.json").read_text())["cases"] for path in evaluations]
    pooled = [record for records in found for record in records]
    for path in evaluations:
        for picture in (path / "pictures").glob("*.png"):
            if picture.stem != "dice":
                shutil.copy(picture, folder / "pictures")
    return _write_scores(sorted(pooled, key=lambda record: record["case"]), folder)


def _write_scores(records: Sequence[Facts], folder: Path) -> Facts:
    """Tables, the plot of every case, and between which volumes the model was measured."""
    scores = [CaseScore.from_record(record) for record in records]
    facts: Facts = {"cases": [*records], "summary": summarise(scores)}
    (folder / "metrics.json").write_text(json.dumps(facts, indent=1) + "\n")
    _write_csv(folder / "cases.csv", facts["cases"])
    write_measured(folder, records)
    dice_plot_png(folder / "pictures" / "dice.png", _dice_by_case(scores))
    return facts


def _evaluate_case(model: Model, name: str, stored: Path, folder: Path) -> Facts:
    """A case's score as a record, with `flags`: what there is to doubt about its prediction."""
    record = folder / "cases" / f"{name}.json"
    if record.exists():
        known: Facts = json.loads(record.read_text())
        return known
    case = open_case(stored)
    reference = read_native(stored / NATIVE_LABEL, case)
    raw = folder / RAW / f"{name}.nii.gz"
    spacing_mm = reference.header.grid.spacing_mm
    ruleless = as_label(read_nifti(raw)) if raw.exists() else _predict(model, case, reference)
    prediction = postprocess(ruleless, model.inference, spacing_mm)
    write_label(folder / "predictions" / f"{name}.nii.gz", prediction, reference.header)
    tolerance_mm = model.inference.nsd_tolerance_mm
    score = score_case(name, prediction, as_label(reference), spacing_mm, tolerance_mm)
    flags = _flags(model, case, reference, (ruleless, prediction))
    found: Facts = {**score.record(), "flags": flags}
    write_atomically(record, json.dumps(found, indent=1).encode())
    return found


def _flags(model: Model, case: Case, reference: Volume, labels: tuple[Label, Label]) -> list[str]:
    """As `predict` gives them, but for what every validation case has: that it is one.

    Args:
        model: What predicted.
        case: As it is stored.
        reference: Its label, for the axes.
        labels: The prediction before and after the rules for labels.
    """
    target = plan_target(reference.header, model.spec.ingest)
    spacing_mm = target.source.spacing_mm
    ruleless, label = map(target.orientation.to_canonical, labels)
    found = findings(label, spacing_mm)
    facts = {**case.facts, "native_label": label_facts(label, found, spacing_mm)}
    second = max(second_part(one, spacing_mm) for one in (ruleless, label))
    raised = doubts(facts, found, second, model.known)
    return [flag for flag in raised if flag != "seen-in-validation"]


def _predict(model: Model, case: Case, reference: Volume) -> Label:
    """The labels as the network has them, before the rules."""
    target = plan_target(reference.header, model.spec.ingest)
    return segment_prepared(model, read_volume(case.image), target)


def _tuned(model: Model, cases: Mapping[str, Path], config: EvaluateConfig, folder: Path) -> EvaluateConfig:
    """The settings with the rules that make these cases best, from predictions without any.

    Predictions are kept until the cases are scored; those of an interrupted run are not made again.
    """
    known = folder / WORTHS
    if not known.exists():
        (folder / RAW).mkdir(exist_ok=True)
        found = _each(cases, lambda name, stored: _worths(model, name, stored, folder), config)
        write_atomically(known, (json.dumps(found, indent=1) + "\n").encode())
    worths: dict[str, list[float]] = json.loads(known.read_text())
    return config.model_copy(update=best_rules(worths.values()))


def _worths(model: Model, name: str, stored: Path, folder: Path) -> list[float]:
    case = open_case(stored)
    reference = read_native(stored / NATIVE_LABEL, case)
    raw = folder / RAW / f"{name}.nii.gz"
    if not raw.exists():
        with replacing(raw) as part:
            write_label(part, _predict(model, case, reference), reference.header)
    spacing_mm = reference.header.grid.spacing_mm
    return worth_of_rules(as_label(read_nifti(raw)), as_label(reference), spacing_mm)


def _write_csv(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    rows = [_row(record) for record in records]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["case"])
        writer.writeheader()
        writer.writerows(rows)


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    lesions, names = record["lesions"][PRIMARY]["all"], measures(record["nsd_tolerance_mm"])
    parts = ("reference", "detected", "prediction", "correct")
    return {
        "case": record["case"],
        **{f"{group}_{measure}": record[group][measure] for group in GROUPS for measure in names},
        **{f"lesions_{PRIMARY}_{part}": lesions[part] for part in parts},
        **{f"burden_{part}": value for part, value in record["burden"].items()},
        "flags": " ".join(record["flags"]),
    }


def _dice_by_case(scores: Sequence[CaseScore]) -> dict[str, dict[str, float]]:
    return {score.case: {group: found.dice for group, found in score.overlaps.items()} for score in scores}


def _worth(score: CaseScore) -> float:
    return score.overlaps["liver"].dice_lits + score.overlaps["tumour"].dice_lits


def _draw(score: CaseScore, stored: Path, ingest: IngestConfig, folder: Path) -> None:
    """One case in three planes, on the case's own grid, where the image is at hand without the source."""
    view = open_view(score.record(), stored, folder / "predictions", ingest)
    title, path = case_title(score.case, view.score), folder / "pictures" / f"{score.case}.png"
    overlay_png(path, view.image, view.reference, view.prediction, view.spacing_mm, title)
