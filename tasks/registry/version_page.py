"""What a registered version answers: which data, which code, which recipe, how good, against whom."""

import html
import json
from collections.abc import Mapping
from typing import Any

from liverseg_core.classes import GROUP_NAMES
from tasks.registry.versions import VersionRecord

MEASURES = "liverseg.measures"
"""Mean Dice, spread and number of cases by class group, as JSON."""
REPORT = "artifacts/report/report.html"
NOT_KNOWN = "not recorded"


def answers(version: VersionRecord) -> dict[str, str]:
    """The questions and what the version's tags say to each."""
    tags = {name.removeprefix("liverseg."): value for name, value in version.tags.items()}

    def told(*names: str) -> str:
        return ", ".join(tags[name] for name in names if name in tags) or NOT_KNOWN

    def keyed(name: str, kind: str) -> str:
        return f"{kind} {tags[name]}" if name in tags else ""

    def several(*parts: str) -> str:
        return "; ".join(part for part in parts if part and part != NOT_KNOWN) or NOT_KNOWN

    return {
        "Which data": several(told("dataset", "cases"), keyed("data_key", "data key")),
        "Which code": several(keyed("git_commit", "commit"), told("libraries")),
        "Which recipe": several(told("recipe"), told("started_from"), keyed("config_key", "recipe key")),
        "How good": several(
            *(_dice(*measured) for measured in json.loads(tags.get("measures", "{}")).items())
        ),
        "Against whom": several(
            *dict.fromkeys([tags.get("comparison", ""), version.reason]), told("decided")
        ),
    }


def links(version: VersionRecord, experiment: str, server: str = "") -> dict[str, str]:
    """Where a browser finds what belongs to a version.

    Args:
        version: Of a registered model.
        experiment: Its run's experiment.
        server: MLflow's address; without one, links work from any of its pages, wherever those are.
    """
    run = f"{server.rstrip('/')}/#/experiments/{experiment}/runs/{version.run_id}".lstrip("/")
    found = {"Report": f"{run}/{REPORT}", "Run": run}
    flow_run = version.tags.get("liverseg.flow_run")
    return found | ({"Prefect flow run": flow_run} if flow_run else {})


def version_page(version: VersionRecord, experiment: str) -> str:
    """The description that MLflow shows on the version's page, in Markdown."""
    # Names come from other people's files.
    rows = [f"**{question}?** {html.escape(answer)}" for question, answer in answers(version).items()]
    linked = " · ".join(f"[{name}]({url})" for name, url in links(version, experiment).items())
    return "\n\n".join([*rows, linked, "Research software, not a medical device."]) + "\n"


def mean_dice(version: VersionRecord, group: str) -> str:
    """A class group's native-space Dice in a column, as `answers` has it."""
    mean = json.loads(version.tags.get(MEASURES, "{}")).get(group, {}).get("mean")
    return "–" if mean is None else f"{mean:.3f}"


def _dice(group: str, found: Mapping[str, Any]) -> str:
    """Mean and spread of native-space Dice in a few words."""
    name, mean = GROUP_NAMES[group], found["mean"]
    spread = "" if found["sd"] is None else f" ± {found['sd']:.3f}"
    return f"{name} –" if mean is None else f"{name} Dice {mean:.3f}{spread} of {found['n']}"
