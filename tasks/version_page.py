"""What a registered version answers: which data, which code, which recipe, how good, against whom."""

import json
from collections.abc import Mapping
from typing import Any

from tasks.registry import VersionRecord

MEASURES = "liverseg.measures"
"""Mean Dice, spread and number of cases by class group, as JSON."""
CLASSES = {"liver": "liver (tumour included)", "liver_only": "liver (tumour excluded)", "tumour": "tumour"}
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
        "How good": several(*(f"{name} {dice_text(found)}" for name, found in measures(version).items())),
        "Against whom": several(version.reason, f"decided {tags['decided']}" if "decided" in tags else ""),
    }


def measures(version: VersionRecord) -> dict[str, Mapping[str, Any]]:
    """`mean`, `sd` and `n` of native-space Dice by class group, where they were recorded."""
    found: dict[str, Mapping[str, Any]] = json.loads(version.tags.get(MEASURES, "{}"))
    return found


def dice_text(found: Mapping[str, Any]) -> str:
    """Mean and spread in a few letters."""
    if found["mean"] is None:
        return "–"
    spread = "" if found["sd"] is None else f" ± {found['sd']:.3f}"
    return f"{found['mean']:.3f}{spread} (n = {found['n']})"


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
    linked = " · ".join(f"[{name}]({url})" for name, url in links(version, experiment).items())
    rows = [f"**{question}?** {answer}" for question, answer in answers(version).items()]
    table = ["| native-space Dice | mean | sd | cases |", "|---|---|---|---|"]
    for group, found in measures(version).items():
        mean, sd = ("–" if found[part] is None else f"{found[part]:.3f}" for part in ("mean", "sd"))
        table.append(f"| {CLASSES.get(group, group)} | {mean} | {sd} | {found['n']} |")
    parts = [*rows, "\n".join(table), linked, "Research software, not a medical device."]
    return "\n\n".join(parts) + "\n"
