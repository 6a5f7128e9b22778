"""The model registry: who is champion, and the files of a version, unaltered."""

import contextlib
import hashlib
import math
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from liverseg_core.artifacts.artifact import digest_json
from liverseg_core.errors import LiversegError
from tasks.tracking import Tracking, service

KEY, DIGEST, VALIDATION = "liverseg.key", "liverseg.digest", "liverseg.validation"
EVALUATION = "liverseg.evaluation_key"
DICE = {group: f"liverseg.dice.{group}" for group in ("liver", "liver_only", "tumour")}
MODEL_FILES = ("inference.json", "model.json", "model.safetensors")
REFERENCE = re.compile(r"models:/(?P<name>[^@/]+)(@(?P<alias>[^@/]+)|/(?P<version>\d+))|runs:/(?P<run>\w+)")


@dataclass(frozen=True)
class VersionRecord:
    """A registered version, and why it has or has not become champion."""

    name: str
    version: int
    aliases: tuple[str, ...]
    run_id: str
    tags: Mapping[str, str]
    reason: str = ""
    against: Mapping[str, Any] | None = None
    """The champion it was compared with: `name`, `version`, `evaluation_key`."""


def decide(
    candidate: Mapping[str, str], champion: Mapping[str, str] | None, tolerance: float
) -> tuple[bool, str]:
    """Say whether a candidate replaces the champion, and why, from the tags of both versions.

    Liver and tumour count alike, under the policy `nan`; a class that one of the two has no Dice for is left
    out of both means. Versions are compared on the same validation cases only.
    """
    if champion is None:
        return True, "champion: there was none"
    if candidate.get(VALIDATION) != champion.get(VALIDATION):
        return False, "not champion: the champion was measured on other validation cases"
    pairs = [
        (float(candidate[DICE[group]]), float(champion[DICE[group]]))
        for group in ("liver", "tumour")
        if DICE[group] in candidate and DICE[group] in champion
    ]
    if not pairs:
        return False, "not champion: there is no Dice to compare"
    ours, theirs = (math.fsum(values) / len(pairs) for values in zip(*pairs, strict=True))
    better = ours >= theirs - tolerance
    compared = f"mean Dice {ours:.4f} against the champion's {theirs:.4f}, tolerance {tolerance:g}"
    return better, f"{'champion' if better else 'not champion'}: {compared}"


def fetch_model(reference: str, folder: Path) -> Path:
    """Return a local folder with a model's files, exactly as they were registered.

    Args:
        reference: `models:/liverseg@champion`, `models:/liverseg/3` or `runs:/<run id>`.
        folder: Where fetched models are kept, by digest; one that is there is not fetched again.

    Raises:
        LiversegError: LS291 when there is no such model; LS401 when MLflow fails; LS503 when its files are
            not the ones that were registered.
    """
    with service():
        version = _resolve(MlflowClient(), reference)
        expected = version.tags.get(DIGEST, "")
        final = folder / (expected[:32] or "unknown")
        if final.is_dir() and model_digest(final) == expected:
            return final
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as staging:
            source = f"models:/{version.name}/{version.version}/artifacts"
            fetched = Path(mlflow.artifacts.download_artifacts(source, dst_path=staging))
            if model_digest(fetched) != expected:
                raise LiversegError(
                    "LS503",
                    f"the files of {reference} are not the ones that were registered",
                    "files whose checksum is the version's",
                    "Use another version, or register the model again",
                )
            shutil.rmtree(final, ignore_errors=True)
            fetched.rename(final)
    return final


def list_versions(tracking: Tracking, name: str) -> list[VersionRecord]:
    """All versions of a registered model, newest first."""
    with service(tracking.uri):
        client = MlflowClient()
        # A search leaves the aliases out; the registered model has them all.
        models = client.search_registered_models(f"name = '{name}'")
        aliases: dict[str, str] = models[0].aliases if models else {}
        found = client.search_model_versions(f"name = '{name}'")
    versions = sorted(found, key=lambda one: -int(one.version))
    return [
        version_record(one, "", [a for a, v in aliases.items() if str(v) == str(one.version)])
        for one in versions
    ]


def set_aliases(
    client: MlflowClient, version: ModelVersion, tolerance: float
) -> tuple[str, dict[str, Any] | None]:
    """Make a version the candidate, and champion if `decide` says so; return the reason, and against whom."""
    name, number = version.name, str(version.version)
    client.set_registered_model_alias(name, "candidate", number)
    champion = _by_alias(client, name, "champion")
    if champion is not None and str(champion.version) == number:
        return "champion: it already was", None
    promote, reason = decide(version.tags, champion.tags if champion else None, tolerance)
    if promote:
        if champion is not None:
            client.set_registered_model_alias(name, "previous", str(champion.version))
        client.set_registered_model_alias(name, "champion", number)
    return reason, champion and {
        "name": name,
        "version": int(champion.version),
        "evaluation_key": champion.tags.get(EVALUATION),
    }


def _by_alias(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    aliases = client.get_registered_model(name).aliases
    return client.get_model_version(name, aliases[alias]) if alias in aliases else None


def _resolve(client: MlflowClient, reference: str) -> ModelVersion:
    named = REFERENCE.fullmatch(reference)
    with contextlib.suppress(MlflowException):
        if named and named["alias"]:
            return client.get_model_version_by_alias(named["name"], named["alias"])
        if named and named["version"]:
            return client.get_model_version(named["name"], named["version"])
        if named and (found := client.search_model_versions(f"run_id = '{named['run']}'")):
            return found[0]
    client.search_registered_models(max_results=1)  # a server that is away is not a model that is missing
    raise LiversegError(
        "LS291",
        f"there is no model {reference}",
        "models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID or a model's folder",
        "See `liverseg models list`",
    )


def version_record(version: ModelVersion, reason: str, aliases: list[str] | None = None) -> VersionRecord:
    """A version as a small record; `aliases` where the version itself does not know them."""
    names = tuple(sorted(version.aliases if aliases is None else aliases))
    return VersionRecord(version.name, int(version.version), names, version.run_id, version.tags, reason)


def model_files(*folders: Path) -> dict[str, Path]:
    """The files of a model by name, wherever among the folders they lie."""
    places = [(name, folder / name) for name in MODEL_FILES for folder in folders]
    return {name: path for name, path in places if path.is_file()}


def model_digest(*folders: Path) -> str:
    """One digest for all of a model's files."""
    files = model_files(*folders)
    return digest_json({name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()})
