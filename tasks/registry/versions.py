"""The model registry: what versions there are, and the files of a version, unaltered."""

import contextlib
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from liverseg_core.artifacts.artifact import digest_json
from liverseg_core.errors import LiversegError
from liverseg_core.models.model_folder import FILES
from tasks.registry.tracking import Tracking, service

KEY, DIGEST, WEIGHTS = "liverseg.key", "liverseg.digest", "liverseg.weights"
EVALUATION = "liverseg.evaluation_key"
REASON, AGAINST = "liverseg.reason", "liverseg.against"
DICE = {group: f"liverseg.dice.{group}" for group in ("liver", "liver_only", "tumour")}
MODEL_FILES = (*FILES, "prediction.npz")
REFERENCE = re.compile(r"models:/(?P<name>[^@/]+)(@(?P<alias>[^@/]+)|/(?P<version>\d+))|runs:/(?P<run>\w+)")


@dataclass(frozen=True)
class VersionRecord:
    """A registered version, and why it has or has not become champion."""

    name: str
    version: int
    aliases: tuple[str, ...]
    run_id: str
    created: str
    """UTC, ISO 8601."""
    tags: Mapping[str, str]
    reason: str
    against: Mapping[str, Any] | None
    """The champion it was compared with: `name`, `version`, and the `evaluation_key` of its scores that
    decided, null where it had none on the same cases."""


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
        version = resolve(MlflowClient(), reference)
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
        version_record(one, (alias for alias, of in aliases.items() if str(of) == str(one.version)))
        for one in versions
    ]


def find_version(tracking: Tracking, reference: str) -> VersionRecord:
    """The registered version that a reference means.

    Raises:
        LiversegError: LS291 when there is none; LS401 when MLflow fails.
    """
    with service(tracking.uri):
        client = MlflowClient()
        found = resolve(client, reference)
        return version_record(client.get_model_version(found.name, found.version))


def by_alias(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version that has an alias."""
    aliases = client.get_registered_model(name).aliases
    return client.get_model_version(name, aliases[alias]) if alias in aliases else None


def resolve(client: MlflowClient, reference: str) -> ModelVersion:
    """As `find_version`, among MLflow's own calls."""
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


def version_record(version: ModelVersion, aliases: Iterable[str] | None = None) -> VersionRecord:
    """A version as a small record; `aliases` where the version itself does not know them."""
    tags = version.tags
    return VersionRecord(
        name=version.name,
        version=int(version.version),
        aliases=tuple(sorted(version.aliases if aliases is None else aliases)),
        run_id=version.run_id,
        created=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        tags=tags,
        reason=tags.get(REASON, ""),
        against=json.loads(tags[AGAINST]) if AGAINST in tags else None,
    )


def model_files(*folders: Path) -> dict[str, Path]:
    """The files of a model by name, wherever among the folders they lie."""
    places = [(name, folder / name) for name in MODEL_FILES for folder in folders]
    return {name: path for name, path in places if path.is_file()}


def model_digest(*folders: Path) -> str:
    """One digest for all of a model's files."""
    files = model_files(*folders)
    return digest_json({name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()})
