"""Split: the stored cases into training, validation and unlabelled."""

from liverseg_core.cases.case_record import CaseRecord
from liverseg_core.cases.split import split_cases
from tasks.context import Context, Record
from tasks.stage import stage_task


def split(context: Context, cases: Record) -> Record:
    """Divide the cases, or find the division that is there.

    Returns:
        `key` (the data version), `training`, `validation`, `unlabelled`, `validation_key`, `cached`.
    """
    records = [CaseRecord(**case) for case in cases["cases"]]
    artifact = split_cases(cases["dataset"], records, context.settings.split, context.store)
    sizes = [f"{len(artifact.facts[group])} {group}" for group in ("training", "validation", "unlabelled")]
    context.report.finished("split", ", ".join(sizes), artifact.cached)
    return {"key": artifact.key, "cached": artifact.cached, **artifact.facts}


split_task = stage_task(split)
