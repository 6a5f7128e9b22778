"""Where registered versions stand towards a dataset: whether there is anything to train for, against whom."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from liverseg_core.artifacts.stages import EVALUATE, SPLIT, TRAIN
from tasks.context import Context, Record
from tasks.evaluate import evaluate_task
from tasks.register import seen_cases
from tasks.registry.promotion import Measured

if TYPE_CHECKING:
    from tasks.registry.versions import VersionRecord

GROUPS = ("training", "validation", "unlabelled")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standing:
    """What the registry knows of a dataset."""

    trained: "VersionRecord | None"
    """A version that was trained on just these data."""
    champion: "VersionRecord | None"
    difference: Mapping[str, list[str]]
    """Names of the cases that are `new`, `changed` and `withdrawn` since the champion's data."""


def standing(context: Context, dataset: Record) -> Standing:
    """Ask the registry who is champion, and whether a version was trained on these data already.

    Raises:
        LiversegError: LS401 when MLflow fails.
    """
    from tasks.registry.tracking import connect_patiently
    from tasks.registry.versions import list_versions

    config = context.settings.register_
    tracking = connect_patiently(context.settings)
    versions = list_versions(tracking, config.model)
    trained = (one for one in versions if one.tags.get("liverseg.data_key") == dataset["key"])
    champion = next((one for one in versions if "champion" in one.aliases), None)
    before = champion and context.store.find(SPLIT, champion.tags.get("liverseg.data_key", "none"))
    return Standing(next(trained, None), champion, difference(before.facts if before else {}, dataset))


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[str]]:
    """What became of the cases between two datasets, by name."""
    old, new = (
        {case["case"]: case["key"] for group in GROUPS for case in facts.get(group, ())}
        for facts in (before, now)
    )
    return {
        "new": sorted(new.keys() - old.keys()),
        "changed": sorted(name for name in new.keys() & old.keys() if new[name] != old[name]),
        "withdrawn": sorted(old.keys() - new.keys()),
    }


def measure_champion(context: Context, dataset: Record, champion: "VersionRecord") -> None:
    """See that the champion has scores on the dataset's validation cases: a candidate is compared on those.

    A case that was withdrawn or whose label changed makes them others than the champion was registered with,
    and what older definitions scored is scored again.
    A champion whose model is not in the store keeps none, and then stays champion.

    Raises:
        LiversegError: LS401 when MLflow fails; those of `evaluate`.
    """
    from tasks.registry.tracking import connect_patiently
    from tasks.registry.version_scores import add_scores, scoring

    settings = context.settings
    seen = seen_cases(context.store, {**dataset, "training": []})
    model = champion.tags.get("liverseg.model_key", "none")
    if scoring(champion.tags, seen.validation) == str(EVALUATE.version):
        return
    if context.store.find(TRAIN, model) is None:
        _logger.warning("the champion's model %s is not in this store: it can't be measured", model)
        return
    evaluation = evaluate_task(context, dataset, {"key": model})
    tracking = connect_patiently(settings)
    reference = f"models:/{champion.name}/{champion.version}"
    add_scores(tracking, reference, Measured.of(seen, evaluation["cases"], evaluation["key"]))
