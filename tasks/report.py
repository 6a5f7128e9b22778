"""Report: one page of a registered model, its model card, films and pictures; here and in MLflow."""

import contextlib
import functools
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from liverseg_core.artifacts.artifact import Artifact, Facts, Recipe, load
from liverseg_core.artifacts.produce import Store, produce
from liverseg_core.artifacts.stages import EVALUATE, REPORT, TRAIN
from liverseg_core.config import Settings
from liverseg_core.errors import ExitCode, Interrupted, LiversegError, described
from liverseg_core.report.sources import ReportSources, Rival
from tasks.context import Context, Record, fetch_cases
from tasks.ensemble import Fold
from tasks.ingest import data_report
from tasks.register import flow_run_link
from tasks.registry.report_reference import PAGE
from tasks.stage import stage_task

DECIDING = ("ingest", "split", "train", "evaluate", "report")
"""Sections that are shown as they are; the others may hold addresses and credentials."""


def report(context: Context, cases: Record, made: Fold, version: Record) -> Record:
    """Write the report of a registered model and add it to the model's MLflow run, or find it.

    Args:
        context: The one that the stages before it got.
        cases: From `ingest`.
        made: What the stages made of the cases.
        version: From `register`.

    Returns:
        `key`, `path`, `page` (where a person finds it), `title`, `links`, `cached`.

    Raises:
        LiversegError: LS801 when it could not be made: the model is registered all the same. Damaged data
            keeps its own code.
    """
    recipe = _recipe(context.settings, cases, made, version)
    try:
        artifact = produce(context.store, recipe, lambda path: _write(context, cases, made, version, path))
    except Interrupted:
        raise
    except Exception as error:  # whatever happened to the page, what a script asks for is there
        if isinstance(error, LiversegError) and error.exit_code is ExitCode.CORRUPT:
            raise
        raise _no_report(version, error) from error
    context.report.finished("report", artifact.facts["title"], artifact.cached)
    place = context.store.place(artifact)
    where = {"path": place, "page": f"{place}/{PAGE}"}
    return {**artifact.facts, "key": artifact.key, "cached": artifact.cached, **where}


def _recipe(settings: Settings, cases: Record, made: Fold, version: Record) -> Recipe:
    inputs = {
        "data": made.dataset["key"],
        "quarantined": [[entry["case"], entry["code"]] for entry in cases["quarantined"]],
        "model": made.model["key"],
        "evaluation": made.evaluation["key"],
        "registration": version["key"],
        "against": version.get("against"),
    }
    return Recipe(REPORT, settings.report.canonical(), inputs)


def _write(context: Context, cases: Record, made: Fold, version: Record, folder: Path) -> Facts:
    """The report's files; complete only when MLflow has them, too."""
    # matplotlib, mlflow and what makes films take seconds to import: a cached rerun never pays for them
    from liverseg_core.report.report import write_report
    from tasks.registry.tracking import connect_patiently, log_report

    settings = context.settings
    tracking = connect_patiently(settings)
    links = _mlflow_links(tracking.uri, tracking.experiment, version) | flow_run_link("Prefect flow run")
    champion, verdict = _champion(context.store, made, version)
    with _whole_evaluation(context.store, made.evaluation["key"]) as evaluation:
        sources = ReportSources(
            title=f"{version['name']} version {version['version']}",
            dataset=made.dataset["dataset"],
            phantom="phantom" in made.dataset["dataset"].casefold(),
            evaluation=evaluation,
            model=context.store.fetch(TRAIN, made.model["key"]),
            resumed_from=made.model.get("resumed_from", []),
            training=[case["case"] for case in made.dataset["training"]],
            validation=fetch_cases(context, made.dataset["validation"]),
            data=data_report(context, cases),
            champion=champion,
            verdict=verdict,
            provenance=_provenance(context.store, made, version),
            recipe=_recipe_yaml(settings),
            links=links,
        )
        progress = functools.partial(context.report.progress, "report")
        facts = write_report(sources, settings.report, folder, progress)
    log_report(tracking, version["run_id"], folder)
    return {**facts, "title": sources.title, "links": links}


def _champion(store: Store, made: Fold, version: Record) -> tuple[Rival | None, str]:
    """Whom the model was compared with, where its scores are at hand, and what came of it."""
    against, verdict = version.get("against"), version["reason"]
    if against is None:
        return None, verdict
    name = f"{against['name']} version {against['version']}"
    key = against["evaluation_key"]  # a version that was registered otherwise may have none
    found = store.find(EVALUATE, key) if key else None
    if found is None:
        return None, f"{verdict}. The evaluation of {name} is not in this store, so its scores are not shown"
    scores, validation = found.facts["cases"], made.dataset["validation"]
    measured = found.manifest["inputs"].get("validation")  # a pooled one lists evaluations instead
    alike = {case["case"] for case in scores} == {case["case"] for case in validation}
    if not alike or measured not in (None, validation):  # a case of that name may have another label now
        return None, f"{verdict}. {name} was measured on other cases, so its scores are not shown"
    return Rival(name, scores), verdict


@contextlib.contextmanager
def _whole_evaluation(store: Store, key: str) -> Iterator[Path]:
    """An evaluation's folder with its predictions, which of a pooled one lie with the folds'."""
    folder = store.fetch(EVALUATE, key)
    folds = _manifest(folder)["inputs"].get("evaluations", ())
    if not folds:
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        whole, predictions = Path(name), Path(name) / "predictions"
        predictions.mkdir()
        for path in folder.iterdir():
            (whole / path.name).symlink_to(path)
        for fold in folds:
            for path in (store.fetch(EVALUATE, fold) / predictions.name).iterdir():
                (predictions / path.name).symlink_to(path)
        yield whole


def _provenance(store: Store, made: Fold, version: Record) -> dict[str, str]:
    trained = _manifest(store.fetch(TRAIN, made.model["key"]))
    scored = _manifest(store.fetch(EVALUATE, made.evaluation["key"]))
    libraries = ", ".join(f"{name} {found}" for name, found in trained["libraries"].items())
    told = {
        "data key": made.dataset["key"],
        "model key": made.model["key"],
        "evaluation key": made.evaluation["key"],
        "registration key": version["key"],
        "trained at commit": trained["git_commit"],
        "evaluated at commit": scored["git_commit"],
        "libraries": libraries,
    }
    return {name: value for name, value in told.items() if value}


def _recipe_yaml(settings: Settings) -> str:
    import yaml

    sections = {name: getattr(settings, name).canonical() for name in DECIDING}
    register = {"model": settings.register_.model, "tolerance": settings.register_.tolerance}
    return yaml.safe_dump({**sections, "register": register}, sort_keys=False)


def _mlflow_links(uri: str, experiment: str, version: Record) -> dict[str, str]:
    """Where a browser finds the version and its run; a database has no pages."""
    if not uri.startswith("http"):
        return {}
    pages = f"{uri.rstrip('/')}/#"
    return {
        "MLflow version": f"{pages}/models/{version['name']}/versions/{version['version']}",
        "MLflow run": f"{pages}/experiments/{experiment}/runs/{version['run_id']}",
    }


def _manifest(folder: Path) -> Mapping[str, Any]:
    artifact = load(folder)
    assert isinstance(artifact, Artifact), f"{folder} was just fetched"
    return artifact.manifest


def _no_report(version: Record, error: Exception) -> LiversegError:
    trouble = str(error) if isinstance(error, LiversegError) else described(error)
    return LiversegError(
        "LS801",
        f"{version['name']} version {version['version']} is registered, but has no report: {trouble}",
        "a registered model and its report",
        "Correct that, then run the same command again: the report alone is made",
    )


report_task = stage_task(report)
