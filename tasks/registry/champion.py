"""Candidate, champion, previous: how a version gets an alias and loses it, one at a time."""

import json
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from liverseg_core.config import RegisterConfig
from liverseg_core.errors import LiversegError
from tasks.registry.archived_prediction import check_prediction
from tasks.registry.lock import one_at_a_time
from tasks.registry.promotion import Rival, decide
from tasks.registry.tracking import Tracking, service
from tasks.registry.version_page import version_page
from tasks.registry.version_scores import VALIDATION, scores_of_version, scoring
from tasks.registry.versions import (
    AGAINST,
    EVALUATION,
    REASON,
    VersionRecord,
    by_alias,
    fetch_model,
    find_version,
    version_record,
)

COMPARISON, DECIDED, FORCED = "liverseg.comparison", "liverseg.decided", "liverseg.forced"


def contend(
    tracking: Tracking, version: VersionRecord, limits: RegisterConfig, force: bool = False
) -> VersionRecord:
    """Make a version the candidate, and champion if `decide` says so; its files are checked already.

    Args:
        tracking: From `connect`.
        version: As registered.
        limits: What `decide` tolerates.
        force: Whether it becomes champion whatever `decide` says.

    Raises:
        LiversegError: LS401 when MLflow fails; LS602 when other promotions take too long.
    """
    name, number = version.name, str(version.version)
    with service(tracking.uri), one_at_a_time(tracking, name) as check:
        client = MlflowClient()
        candidate, champion = client.get_model_version(name, number), by_alias(client, name, "champion")
        already = champion is not None and str(champion.version) == number
        if not already:
            promoted, told = _judge(client, candidate, champion, limits, force)
        check()
        client.set_registered_model_alias(name, "candidate", number)
        if not already and promoted:
            if champion:
                client.set_registered_model_alias(name, "previous", str(champion.version))
            client.set_registered_model_alias(name, "champion", number)
        if not already or REASON not in candidate.tags:
            _tell(tracking, client, candidate, {REASON: "champion: it already was"} if already else told)
        return version_record(client.get_model_version(name, number))


def promote(tracking: Tracking, reference: str, limits: RegisterConfig, force: bool = False) -> VersionRecord:
    """Make a registered version champion, unless it is worse.

    Args:
        tracking: From `connect`.
        reference: `models:/NAME/VERSION`, `models:/NAME@ALIAS` or `runs:/ID`.
        limits: What `decide` tolerates.
        force: Whether it becomes champion also when it is worse; nothing makes up for damaged files.

    Raises:
        LiversegError: LS901 when it is refused; LS291, LS503 and LS525 for a version that is not there or not
            as it was registered; LS401 and LS602 as `contend`.
    """
    version = find_version(tracking, reference)
    check_files(version)
    judged = contend(tracking, version, limits, force)
    if "champion" not in judged.aliases:
        raise LiversegError(
            "LS901",
            f"{judged.name} version {judged.version} is {judged.reason}",
            "a version that is not worse than the champion on the same validation cases",
            "Keep the champion, or repeat with --force if you know better",
        )
    return judged


def roll_back(tracking: Tracking, name: str) -> tuple[VersionRecord, VersionRecord, int | None]:
    """Make the previous champion the champion again, and the champion the previous one.

    Returns:
        The version that is champion now, the one that was, and how many voxels of the archived prediction
        the new one labels otherwise; None where none was archived.

    Raises:
        LiversegError: LS902 when there is no previous champion; LS503 and LS525 when it is not as it was
            registered; LS401 and LS602 as `contend`.
    """
    with service(tracking.uri):
        client = MlflowClient()
        back = _previous(client, name)
    differing = check_files(version_record(back))
    with service(tracking.uri), one_at_a_time(tracking, name) as check:
        champion = by_alias(client, name, "champion")
        if champion is None or str(_previous(client, name).version) != str(back.version):
            raise _nothing_previous(name, "the aliases have just been changed")
        check()
        # In this order: a crash in between leaves no champion that nobody wanted.
        client.set_registered_model_alias(name, "champion", str(back.version))
        client.set_registered_model_alias(name, "previous", str(champion.version))
        _tell(tracking, client, champion, {REASON: f"not champion: rolled back to version {back.version}"})
        _tell(tracking, client, back, {REASON: f"champion: rolled back from version {champion.version}"})
        now, was = (client.get_model_version(name, one.version) for one in (back, champion))
        return version_record(now), version_record(was), differing


def check_files(version: VersionRecord) -> int | None:
    """Check a version's files, and that the model in them predicts what it did; see `check_prediction`."""
    with tempfile.TemporaryDirectory() as folder:
        files = fetch_model(f"models:/{version.name}/{version.version}", Path(folder))
        return check_prediction(files, f"{version.name} version {version.version}")


def _judge(
    client: MlflowClient,
    candidate: ModelVersion,
    champion: ModelVersion | None,
    limits: RegisterConfig,
    force: bool,
) -> tuple[bool, dict[str, str]]:
    """Whether to promote, and the tags that tell it."""
    validation = candidate.tags.get(VALIDATION, "none")
    rival = champion and Rival(
        f"version {champion.version}",
        scores_of_version(client, champion, validation),
        alike=scoring(champion.tags, validation) == scoring(candidate.tags, validation),
    )
    promoted, reason = decide(scores_of_version(client, candidate, validation), rival, limits)
    tags = {REASON: reason, COMPARISON: reason}
    if champion and rival:
        against = {"name": champion.name, "version": int(champion.version)}
        tags[AGAINST] = json.dumps(against | {"evaluation_key": _decisive(champion, rival, validation)})
    if force and not promoted:
        tags |= {REASON: f"champion: forced, though {reason}", FORCED: reason}
    return promoted or force, tags


def _decisive(champion: ModelVersion, rival: Rival, validation: str) -> str | None:
    """The key of the champion's evaluation on the candidate's cases; None where it has none that decided."""
    if rival.measured is None:
        return None
    at_first: str | None = champion.tags.get(EVALUATION)  # older scores don't say whose they are
    return rival.measured.evaluation or (at_first if champion.tags.get(VALIDATION) == validation else None)


def _tell(tracking: Tracking, client: MlflowClient, version: ModelVersion, tags: Mapping[str, str]) -> None:
    """Tags for programs, a page for people."""
    name, number = version.name, str(version.version)
    for tag, value in {**tags, DECIDED: datetime.now(UTC).isoformat(timespec="seconds")}.items():
        client.set_model_version_tag(name, number, tag, value)
    told = version_record(client.get_model_version(name, number))
    client.update_model_version(name, number, version_page(told, tracking.experiment))


def _previous(client: MlflowClient, name: str) -> ModelVersion:
    # A search, since asking for a model that there is not is an error that looks like any other.
    known = client.search_registered_models(f"name = '{name}'")
    previous = by_alias(client, name, "previous") if known else None
    champion = by_alias(client, name, "champion") if known else None
    if previous is None or (champion and previous.version == champion.version):
        raise _nothing_previous(name, "no version was champion before this one")
    return previous


def _nothing_previous(name: str, why: str) -> LiversegError:
    return LiversegError(
        "LS902",
        f"{name} cannot be rolled back: {why}",
        "a registered model with the alias previous",
        "See `liverseg models list`; `liverseg models promote` makes any version champion",
    )
