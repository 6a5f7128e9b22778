"""Publish a trained model: evaluation, files and measures to its run, then one registered version."""

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, LoggedModel, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

import liverseg_core
from liverseg_core.artifacts.artifact import Artifact, load, verify
from liverseg_core.config import RegisterConfig
from liverseg_core.errors import LiversegError, described
from liverseg_core.evaluation.glossary import term
from liverseg_core.evaluation.lesions import PRIMARY
from liverseg_core.provenance import library_versions
from liverseg_core.training.learning_curves import learning_curves_png
from tasks.registry.archived_prediction import archive_prediction, example_scan
from tasks.registry.champion import check_files, contend
from tasks.registry.lock import one_at_a_time
from tasks.registry.model_reference import weights_digest
from tasks.registry.promotion import Measured, Seen
from tasks.registry.tracking import Tracking, service
from tasks.registry.version_page import MEASURES as DICE_TABLE
from tasks.registry.version_scores import VALIDATION, store_scores, with_ancestors
from tasks.registry.versions import (
    DICE,
    DIGEST,
    EVALUATION,
    KEY,
    WEIGHTS,
    VersionRecord,
    model_digest,
    model_files,
    version_record,
)

SHOWN = {"pictures"}
"""Folders of an evaluation that go to MLflow beside its tables: what a person looks at, never voxels."""

SIGNATURE = ModelSignature(
    inputs=Schema([
        # Of any type where that may be: MLflow's own check takes no whole number for a double, reads arrays
        # voxel by voxel in Python, and its refusals have no code. Without an array it takes no dictionary.
        ColSpec(AnyType(), "path", required=False),
        ColSpec(AnyType(), "image", required=False),
        ColSpec(Array(AnyType()), "affine", required=False),
    ]),
    outputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1))]),
    params=ParamSchema([
        ParamSpec("volumes", DataType.boolean, False),
        ParamSpec("labels", DataType.string, "array"),
    ]),
)  # fmt: skip
EXAMPLE = dict(zip(("image", "affine"), (part.tolist() for part in example_scan()), strict=True))
REQUIREMENTS = (
    "connected-components-3d",
    "isal",
    "jaxtyping",
    "mlflow",
    "nibabel",
    "numba",
    "numpy",
    "pandas",
    "pydantic",
    "safetensors",
    "torch",
)
"""What the served model imports, and no more; liverseg itself, which no index has, is stored beside it."""
CODE = Path(liverseg_core.__file__).parent


@dataclass(frozen=True)
class Registration:
    """A model to publish, with what it was found to be worth.

    Args:
        key: Content key of this registration; a key has one version, however often it is asked for.
        run_id: The training's run.
        config: The registered model's name, and when it becomes champion.
        model: Folder with `model.safetensors` and `model.json`.
        evaluation: Folder with the evaluation's tables and `pictures/`.
        summary: What `liverseg_core.evaluation.measures.summarise` gave.
        seen: The cases that it was measured on, and those it was trained on.
        started_from: Digests of the weights that training began with.
        data_key: The data version it was trained on, at most 36 characters.
        tags: More tags: keys, commit, recipe.
    """

    key: str
    run_id: str
    config: RegisterConfig
    model: Path
    evaluation: Path
    summary: Mapping[str, Any]
    seen: Seen
    data_key: str
    started_from: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)


def register(tracking: Tracking, request: Registration) -> VersionRecord:
    """Publish a model as a version and give it its aliases.

    Raises:
        LiversegError: LS401 when MLflow fails; LS502 when a model's file is not the one that was made; LS503
            when what was stored is not what was sent; LS523 when the stored model does not predict, LS525
            when it predicts otherwise; LS602 when other registrations take too long.
    """
    name = request.config.model
    with service(tracking.uri):
        client = MlflowClient()
        with contextlib.suppress(MlflowException):  # it exists
            client.create_registered_model(name)
        version = _find(client, request) or _publish(tracking, client, request)
        record = version_record(client.get_model_version(name, version.version))
    check_files(record)
    return contend(tracking, record, request.config)


def _find(client: MlflowClient, request: Registration) -> ModelVersion | None:
    found = client.search_model_versions(
        f"name = '{request.config.model}' and tags.`{KEY}` = '{request.key}'"
    )
    return found[0] if found else None


def _publish(tracking: Tracking, client: MlflowClient, request: Registration) -> ModelVersion:
    """Log evaluation and model to the run; the version comes last, when all it names is stored."""
    artifact = load(request.model)
    if artifact is not None:
        verify(artifact)
    _log_evaluation(client, request)
    _log_learning_curves(client, request, artifact)
    logged, digest = _log_model(request)
    _log_metrics(client, request, logged.model_id)
    tags = {**_tags(client, request), KEY: request.key, DIGEST: digest}
    name = request.config.model
    with one_at_a_time(tracking, name):
        # Uploads took their time: another process may have registered the same meanwhile.
        found = _find(client, request)
        if found is None:
            return client.create_model_version(
                name, logged.model_uri, request.run_id, tags, model_id=logged.model_id
            )
    client.delete_logged_model(logged.model_id)
    return found


def _log_model(request: Registration) -> tuple[LoggedModel, str]:
    """Store the model's files with a prediction to hold it to; return it, and the digest of the files."""
    with tempfile.TemporaryDirectory() as name, _own_code(), mlflow.start_run(run_id=request.run_id):
        folder = Path(name)
        for file, path in model_files(request.model, request.evaluation).items():
            (folder / file).symlink_to(path.resolve())
        with _predicting():
            archive_prediction(folder)
        files = {file: str(path.resolve()) for file, path in model_files(folder).items()}
        digest = model_digest(folder)
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts=files,
            code_paths=[str(CODE)],
            signature=SIGNATURE,
            input_example=EXAMPLE,
            # Named, or MLflow finds out by running the model in a second environment.
            pip_requirements=[f"{name}=={found}" for name, found in library_versions(REQUIREMENTS).items()],
            tags={DIGEST: digest},
        )
        with _predicting():
            _serve_example(logged.model_uri)
    return logged, digest


def _tags(client: MlflowClient, request: Registration) -> dict[str, str]:
    """What a version says of itself; see `tasks.registry.version_page`."""
    dice = {DICE[group]: request.summary[group]["dice"] for group in DICE}
    table = {
        group: {part: request.summary[group]["policies"]["nan"][part] for part in ("mean", "sd", "n")}
        for group in DICE
    }
    libraries = library_versions(("liverseg", "torch", "torchio"))
    cases = json.loads((request.evaluation / "metrics.json").read_text())["cases"]
    seen, origin = with_ancestors(client, request.config.model, request.seen, request.started_from)
    measured = Measured.of(seen, cases, request.tags.get(EVALUATION))
    return {
        "liverseg.libraries": ", ".join(f"{name} {found}" for name, found in libraries.items()),
        **request.tags,
        **({"liverseg.started_from": f"started from {origin}"} if origin else {}),
        WEIGHTS: weights_digest(request.model),
        VALIDATION: seen.validation,
        DICE_TABLE: json.dumps(table),
        **store_scores(client, request.run_id, request.key, measured),
        **{name: f"{value:.6f}" for name, value in dice.items() if value is not None},
    }


def _log_evaluation(client: MlflowClient, request: Registration) -> None:
    for path in sorted(request.evaluation.iterdir()):
        if path.is_file():
            client.log_artifact(request.run_id, str(path), "evaluation")
        elif path.name in SHOWN:
            client.log_artifacts(request.run_id, str(path), f"evaluation/{path.name}")


def _log_learning_curves(client: MlflowClient, request: Registration, model: Artifact | None) -> None:
    history = request.model / "history.jsonl"
    if model is None or not history.exists():  # an ensemble has none of its own
        return
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "learning_curves.png"
        stops = model.facts.get("resumed_from", [])
        learning_curves_png(picture, history, stops, f"{request.config.model} {model.key[:8]}")
        client.log_artifact(request.run_id, str(picture))


def _log_metrics(client: MlflowClient, request: Registration, model_id: str) -> None:
    """Final measures, linked to the model and to the data, so that either finds the other."""
    dataset = Dataset("liverseg", request.data_key, "liverseg", json.dumps({"key": request.data_key}))
    _log_dataset(client, request.run_id, dataset)
    # MLflow refuses a value that the run has at this time for another model: each model has its own time.
    stamp = client.get_logged_model(model_id).creation_timestamp
    link = (model_id, dataset.name, dataset.digest, request.run_id)
    metrics = [Metric(name, value, stamp, 0, *link) for name, value in _final(request.summary)]
    client.log_batch(request.run_id, metrics=metrics)


def _log_dataset(client: MlflowClient, run_id: str, dataset: Dataset) -> None:
    try:
        client.log_inputs(run_id, datasets=[DatasetInput(dataset)])
    except MlflowException:
        # Of two that log the same at once, MLflow finds it missing for both, and refuses the second.
        logged = client.get_run(run_id).inputs.dataset_inputs
        if dataset.digest not in {one.dataset.digest for one in logged}:
            raise


def _final(summary: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every mean that is worth a column, by its name in docs/measures.md; what no case defines has none."""
    for group in DICE:
        measures = summary[group]
        found = {f"dice_{name}": policy["mean"] for name, policy in measures["policies"].items()}
        found |= {f"dice_{name}": measures["policies"]["nan"][name] for name in ("median", "sd")}
        others = (name for name in measures.get("spread", ()) if not name.startswith("dice"))
        found |= {name: measures[name] for name in others if term(name).unit != "ml"}
        yield from ((f"evaluate/{group}/{name}", value) for name, value in found.items() if value is not None)
    lesions = summary.get("lesions", {}).get(PRIMARY, {}).get("all", {})
    found = {f"lesions_{PRIMARY}/{name}": lesions.get(name) for name in ("recall", "precision", "f1")}
    found["burden_rmse"] = summary.get("burden", {}).get("rmse")
    yield from ((f"evaluate/{name}", value) for name, value in found.items() if value is not None)


def _serve_example(uri: str) -> None:
    """Load what was stored and predict the example: MLflow's own check of it only warns."""
    label = mlflow.pyfunc.load_model(uri).predict(EXAMPLE)
    if label.dtype != np.uint8 or label.shape != np.shape(EXAMPLE["image"]) or label.max() > 2:
        raise ValueError(f"it predicts {label.dtype} of shape {label.shape}")


@contextlib.contextmanager
def _own_code() -> Iterator[None]:
    """Take the stored code out of the way again: MLflow has put it first, for child processes too."""
    before = [*sys.path]
    try:
        yield
    finally:
        sys.path[:] = before


@contextlib.contextmanager
def _predicting() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever it raises, the model does not predict
        raise LiversegError(
            "LS523",
            f"the stored model does not work ({described(error)})",
            "a model that labels the example volume",
            "Run `liverseg doctor`; nothing was registered",
        ) from error
