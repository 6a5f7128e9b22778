"""What each version is worth case by case, kept with its run: promotion needs nothing but MLflow.

A model may be evaluated more than once, and its run's `evaluation/` holds the last: scores lie under the key
of the version and the digest of the validation cases, and a tag of the version vouches for them.
"""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from liverseg_core.artifacts.stages import EVALUATE
from tasks.registry.promotion import Measured, Seen
from tasks.registry.tracking import Tracking, service
from tasks.registry.versions import KEY, WEIGHTS, resolve

VALIDATION = "liverseg.validation"
SCORES = "liverseg.scores."
"""Followed by the digest of validation cases: the digest of the file of a version's scores on them."""
SCORING = "liverseg.scoring."
"""Followed by the same: the version of evaluate by whose definitions they were scored."""


def add_scores(tracking: Tracking, reference: str, measured: Measured) -> None:
    """Keep what a version is worth on other validation cases, so that a candidate can be compared on those.

    On cases that it has scores of already, those are replaced; what it had seen stays.

    Raises:
        LiversegError: LS291 when there is no such version; LS401 when MLflow fails.
    """
    with service(tracking.uri):
        client = MlflowClient()
        version = resolve(client, reference)
        known = scores_of_version(client, version, measured.seen.validation)
        if known:
            measured = replace(measured, seen=known.seen)
        for name, value in store_scores(client, version.run_id, version.tags[KEY], measured).items():
            client.set_model_version_tag(version.name, str(version.version), name, value)


def store_scores(client: MlflowClient, run_id: str, key: str, measured: Measured) -> dict[str, str]:
    """Add scores to a run, under the key of a version of it; return the tags that vouch for them."""
    text = measured.to_json()
    client.log_text(run_id, text, _scores_file(key, measured.seen.validation))
    validation = measured.seen.validation
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {SCORES + validation: digest, SCORING + validation: str(EVALUATE.version)}


def scoring(tags: Mapping[str, str], validation: str) -> str | None:
    """By which version of evaluate a version was scored on these cases; None where it was not.

    Versions registered before that was recorded were scored by some older one, which is called "0".
    """
    return tags.get(SCORING + validation, "0") if SCORES + validation in tags else None


def scores_of_version(client: MlflowClient, version: ModelVersion, validation: str) -> Measured | None:
    """What a version was found to be worth on these cases; None where there is nothing, or not what was."""
    path = _scores_file(version.tags.get(KEY, "none"), validation)
    there = {item.path for item in client.list_artifacts(version.run_id, str(Path(path).parent))}
    if path not in there:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source = f"runs:/{version.run_id}/{path}"
        text = Path(mlflow.artifacts.download_artifacts(source, dst_path=folder)).read_bytes()
    if hashlib.sha256(text).hexdigest() != version.tags.get(SCORES + validation):
        return None
    return Measured.from_json(text.decode())


def with_ancestors(
    client: MlflowClient, name: str, seen: Seen, started_from: Sequence[str]
) -> tuple[Seen, str]:
    """Add what the weights that a training began with had been trained on.

    Returns:
        What has been seen in all, and what those weights are called; those of no registered version add
        nothing, and their name says so.
    """
    before, names = set(seen.before), []
    for weights in started_from:
        found = client.search_model_versions(f"name = '{name}' and tags.`{WEIGHTS}` = '{weights}'")
        measured = found and scores_of_version(client, found[0], found[0].tags.get(VALIDATION, "none"))
        if measured:
            before |= {*measured.seen.training, *measured.seen.before}
        names.append(
            f"version {found[0].version}" if found else f"weights {weights[:12]}, not registered here"
        )
    return replace(seen, before=sorted(before)), " and ".join(dict.fromkeys(names))


def _scores_file(key: str, validation: str) -> str:
    return f"scores/{key}/{validation}.json"
