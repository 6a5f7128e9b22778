"""Ingest: every case of the source into the store, one runner item a case."""

import functools
import itertools
import json
from collections.abc import Iterable
from dataclasses import asdict

from liverseg_core.artifacts.artifact import Artifact, Facts
from liverseg_core.artifacts.case_index import remember, stored_facts
from liverseg_core.artifacts.stages import INGEST
from liverseg_core.cases.case_record import CaseRecord, case_recipe, record
from liverseg_core.cases.data_report import CaseRow, describe
from liverseg_core.errors import ExitCode, LiversegError
from liverseg_core.runners import Outcome
from liverseg_core.sources.source import CaseSource, Source, open_source
from liverseg_core.sources.spacing_overrides import override_spacings
from tasks.context import Context, Record
from tasks.stage import stage_task

LATEST = f"{INGEST.folder}/latest.json"
ITS_OWN = {"LS222", "LS702", "LS703"}
"""Nobody foresaw what the case does; a worker died of it, or would have."""


def ingest(context: Context, limit: int | None = None) -> Record:
    """Store every case of the source that is not stored yet.

    Returns:
        `dataset`, `cases` (what `CaseRecord` holds), `quarantined` (case, code, reason), `made`, `cached`.

    Raises:
        LiversegError: LS205 without a source; LS335 when no case could be used; what `open_source` raises.
    """
    source = _source(context)
    found = _find(context, source.cases[:limit])
    records = [stored for stored in found.values() if stored]
    todo = [case for case, stored in found.items() if stored is None]
    made, quarantined = _make(context, todo) if todo else ([], [])
    note = f"{len(made)} new, {len(records)} stored before, {len(quarantined)} quarantined"
    context.report.finished("ingest", note, cached=not todo)
    records = sorted([*records, *made], key=lambda case: case.case)
    if not records:
        raise LiversegError(
            "LS335",
            f"none of the {len(found)} cases could be used; the first: {quarantined[0]['reason']}"
            if quarantined
            else f"{source.path} lists no cases",
            "at least one usable case",
            "Run liverseg verify to see what is wrong with each",
        )
    result: Record = {
        "source": str(source.path),
        "dataset": source.name,
        "cases": [asdict(case) for case in records],
        "quarantined": quarantined,
    }
    context.store.write(LATEST, json.dumps(result, indent=1).encode())
    return {**result, "made": len(made), "cached": not todo}


def stored_cases(context: Context) -> Record:
    """What the last ingest into this store left, for stages that run without a source.

    Raises:
        LiversegError: LS206 when nothing was ingested yet.
    """
    if context.settings.source is not None:
        return ingest(context)
    latest = context.store.read(LATEST)
    if latest is None:
        what = f"the store {context.store} holds no cases"
        raise LiversegError("LS206", what, "a store that was ingested into", "Run liverseg ingest first")
    return {**json.loads(latest), "cached": True}


def data_report(context: Context, cases: Record) -> list[CaseRow]:
    """What `ingest` found of every case: a row each, also for the quarantined.

    Args:
        context: The one that the cases were ingested with.
        cases: The result of `ingest`.
    """
    stored = stored_facts(context.store, [case["key"] for case in cases["cases"]])
    refused = ({**entry, "problem": entry["reason"]} for entry in cases["quarantined"])
    return describe(itertools.chain(filter(None, stored), refused))


def plan(context: Context, limit: int | None = None) -> dict[CaseSource, CaseRecord | None]:
    """Each case of the source, with its record where it is stored already."""
    return _find(context, _source(context).cases[:limit])


def _source(context: Context) -> Source:
    settings = context.settings
    if settings.source is None:
        raise LiversegError("LS205", "no source is given", "a Decathlon tar or folder", "Pass SOURCE")
    source = open_source(settings.source, settings.source_md5, settings.remote)
    return override_spacings(source, settings.ingest.spacing_overrides)


def _find(context: Context, cases: Iterable[CaseSource]) -> dict[CaseSource, CaseRecord | None]:
    keys = {case: case_recipe(case, context.settings.ingest).key for case in cases}
    facts = stored_facts(context.store, keys.values())
    pairs = zip(keys.items(), facts, strict=True)
    return {case: record(key, found) if found else None for (case, key), found in pairs}


def _make(context: Context, todo: Iterable[CaseSource]) -> tuple[list[CaseRecord], list[dict[str, str]]]:
    from liverseg_core.cases.ingest import ingest_case

    settings, cases = context.settings, list(todo)
    made: dict[str, Facts] = {}
    quarantined: list[dict[str, str]] = []
    try:
        with context.open_runner() as runner:
            # Of the core: unpickling a function of this module would make every worker import Prefect.
            work = functools.partial(
                ingest_case,
                config=settings.ingest,
                store=context.store,
                memory_limit=runner.memory_per_task,
            )
            outcome: Outcome[CaseSource, Artifact]
            for done, outcome in enumerate(runner.map(work, cases), 1):
                if outcome.error and not _quarantines(outcome.error):
                    raise outcome.error
                if outcome.error:
                    error = outcome.error
                    quarantined.append({"case": outcome.item.case, "code": error.code, "reason": str(error)})
                elif outcome.result:
                    made[outcome.result.key] = outcome.result.facts
                context.report.progress("ingest", done, len(cases), outcome.item.case)
    finally:
        if made:
            remember(context.store, made)
    records = [record(key, facts) for key, facts in made.items()]
    return records, sorted(quarantined, key=lambda entry: entry["case"])


def _quarantines(error: LiversegError) -> bool:
    """Whether an error stops its case alone; any other, such as a full disk, stops the stage."""
    return error.exit_code is ExitCode.BAD_INPUT or error.code in ITS_OWN


ingest_task = stage_task(ingest)
