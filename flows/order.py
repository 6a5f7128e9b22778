"""The order of the stages, said once: both flows, their folds and the single verbs follow it.

Flows bring the stages as Prefect's tasks, single verbs run them plain: Prefect takes a second to import.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from liverseg_core.artifacts import stages
from tasks.context import Context, Record, fold_contexts
from tasks.ensemble import Fold, ensemble, whole
from tasks.evaluate import evaluate
from tasks.ingest import stored_cases
from tasks.register import register
from tasks.report import report
from tasks.split import split
from tasks.train import train


@dataclass(frozen=True)
class Stages:
    """How each stage is done."""

    ingest: Callable[[Context], Record]
    split: Callable[[Context, Record], Record]
    train: Callable[[Context, Record], Record]
    evaluate: Callable[[Context, Record, Record], Record]
    ensemble: Callable[[Context, Sequence[Fold]], Record]
    """Of several folds; one needs none."""
    register: Callable[[Context, Record, Record, Record], Record]
    report: Callable[[Context, Record, Fold, Record], Record]

    def until(self, last: str) -> "Stages":
        """The same stages, of which those after `last` do nothing."""
        names = [stage.name for stage in stages.STAGES]
        return self.given({name: {} for name in names[names.index(last) + 1 :]})

    def given(self, done: Mapping[str, Record]) -> "Stages":
        """The same stages, of which these are done: they give what is known."""
        return replace(self, **{name: _giving(record) for name, record in done.items()})


PLAIN = Stages(stored_cases, split, train, evaluate, ensemble, register, report)
"""For the cases that are stored, unless there is a source to ingest."""


def follow(context: Context, do: Stages) -> dict[str, Record]:
    """Take a dataset to a registered model and its report; each fold as far as its evaluation.

    Args:
        context: What every stage gets.
        do: How each is done.

    Returns:
        One record a stage, by its name; of several folds, what they are together.
    """
    cases = do.ingest(context)
    folds = []
    for part in fold_contexts(context):
        dataset = do.split(part, cases)
        model = do.train(part, dataset)
        folds.append(Fold(dataset, model, do.evaluate(part, dataset, model)))
    made = whole(folds, lambda: do.ensemble(context, folds))
    version = do.register(context, made.dataset, made.model, made.evaluation)
    page = do.report(context, cases, made, version)
    parts = {"split": made.dataset, "train": made.model, "evaluate": made.evaluation}
    return {"ingest": cases, **parts, "register": version, "report": page}


def _giving(record: Record) -> Callable[..., Record]:
    return lambda *_: record
