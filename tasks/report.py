"""Report: one page of a registered model, its model card, films and pictures; here and in MLflow."""

import contextlib
import functools
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from liverseg_core.artifacts.artifact import Artifact, Facts, Recipe, load
from liverseg_core.artifacts.produce import Store, produce
from liverseg_core.artifacts.stages import EVALUATE, POOL, REPORT, TRAIN
from liverseg_core.cases.data_report import CaseRow
from liverseg_core.config import Settings
from liverseg_core.errors import ExitCode, Interrupted, LiversegError, described
from liverseg_core.provenance import library_versions
from liverseg_core.report.places import placeless, placeless_values
from liverseg_core.report.sources import WRITTEN, ReportSources, Rival, duration
from tasks.context import Context, Record, fetch_cases
from tasks.ensemble import Fold
from tasks.ingest import data_report
from tasks.register import flow_run_link, trainings
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
    champion, verdict = _champion(context.store, version)
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
            data=_placeless(data_report(context, cases), settings),
            champion=champion,
            verdict=placeless(verdict),
            provenance=_provenance(context.store, made, version),
            recipe=_recipe_yaml(settings),
            links=links,
        )
        progress = functools.partial(context.report.progress, "report")
        facts = write_report(sources, settings.report, folder, progress)
    log_report(tracking, version["run_id"], folder)
    return {**facts, "title": sources.title, "links": links}


def _champion(store: Store, version: Record) -> tuple[Rival | None, str]:
    """Whom the model was compared with, by the scores that decided, where they are here; and the verdict."""
    against, verdict = version.get("against"), version["reason"]
    if against is None:
        return None, verdict
    name = f"{against['name']} version {against['version']}"
    key = against["evaluation_key"]
    if key is None:  # nothing was compared, as the verdict says
        return None, verdict
    found = store.find(EVALUATE, key)
    if found is None:
        return None, f"{verdict}. The evaluation of {name} is not in this store, so its scores are not shown"
    if found.manifest["version"] != (EVALUATE if found.manifest["stage"] == EVALUATE.name else POOL).version:
        told = f"{name} was scored by an older version of the measures, so its scores are not shown"
        return None, f"{verdict}. {told}"
    return Rival(name, found.facts["cases"]), verdict


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
    trained = trainings(store, made.model["key"])
    scored = _scorings(store, made.evaluation["key"])
    libraries = ", ".join(f"{name} {found}" for name, found in trained[0]["libraries"].items())
    now, ours = datetime.now(UTC).isoformat(), library_versions(("liverseg",))["liverseg"]
    told = {
        WRITTEN: f"{_minute(now)} with liverseg {ours}",
        "trained": _made(trained),
        "evaluated": _made(scored),
        "data key": made.dataset["key"],
        "model key": made.model["key"],
        "evaluation key": made.evaluation["key"],
        "registration key": version["key"],
        "trained at commit": trained[0]["git_commit"],
        "evaluated at commit": scored[0]["git_commit"],
        "libraries": libraries,
    }
    return {name: value for name, value in told.items() if value}


def _scorings(store: Store, key: str) -> list[Mapping[str, Any]]:
    """The manifests of an evaluation; of a pooled one, those of the folds'."""
    manifest = _manifest(store.fetch(EVALUATE, key))
    folds = manifest["inputs"].get("evaluations", ())
    return [_manifest(store.fetch(EVALUATE, fold)) for fold in folds] or [manifest]


def _made(manifests: Sequence[Mapping[str, Any]]) -> str:
    """When artifacts were made, in what time together, on what, with what; older ones don't say all of it."""
    dates = [one["finished"] for one in manifests if "finished" in one]
    seconds, resumed = sum(one["seconds"] for one in manifests), any(one.get("resumed") for one in manifests)
    devices = dict.fromkeys(one["facts"].get("device") for one in manifests)
    versions = dict.fromkeys(one.get("liverseg") for one in manifests)
    parts = [
        _minute(max(dates)) if dates else "",
        f"in {duration(seconds)}{' since it was last started' if resumed else ''}",
        *(f"on {device}" for device in devices if device),
        *(f"with liverseg {version}" for version in versions if version),
    ]
    return " ".join(filter(None, parts))


def _minute(moment: str) -> str:
    """`2026-11-30 02:12 UTC`, of a time in UTC as ISO 8601 has it."""
    return f"{moment[:16].replace('T', ' ')} UTC"


def _recipe_yaml(settings: Settings) -> str:
    import yaml

    sections = {name: getattr(settings, name).canonical() for name in DECIDING}
    register = {"model": settings.register_.model, "tolerance": settings.register_.tolerance}
    shown = placeless_values({**sections, "register": register})
    return yaml.safe_dump(shown, sort_keys=False)


def _placeless(rows: Iterable[CaseRow], settings: Settings) -> list[CaseRow]:
    """The data report's rows, whose problems may name files of this machine."""
    known = [Path(place).absolute() for place in (settings.source, settings.store) if place]
    folders = [str(folder) for place in known for folder in (place, place.parent)]
    return [replace(row, problem=placeless(row.problem, folders)) if row.problem else row for row in rows]


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
