"""Publish a trained model: evaluation, files and measures to its run, then one registered version."""

import contextlib
import fcntl
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Schema, TensorSpec

from liverseg_core.artifacts.artifact import Artifact, load, verify
from liverseg_core.errors import LiversegError
from liverseg_core.provenance import library_versions
from liverseg_core.training.learning_curves import learning_curves_png
from tasks.registry import (
    DICE,
    DIGEST,
    KEY,
    VALIDATION,
    VersionRecord,
    fetch_model,
    model_digest,
    model_files,
    set_aliases,
    version_record,
)
from tasks.tracking import Tracking, service

SHOWN = {"pictures"}
"""Folders of an evaluation that go to MLflow beside its tables: what a person looks at, never voxels."""
MEANS = ("voe", "rvd", "assd_mm", "hd95_mm", "mssd_mm", "surface_dice_2mm")
LOCK_WAIT_S = 60.0

SIGNATURE = ModelSignature(
    inputs=Schema([
        ColSpec(DataType.string, "path", required=False),
        ColSpec(AnyType(), "image", required=False),  # typed arrays are checked voxel by voxel, in Python
        ColSpec(Array(Array(DataType.double)), "affine", required=False),
    ]),
    outputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1))]),
)  # fmt: skip
EXAMPLE_SHAPE = (8, 8, 8)
EXAMPLE = {"image": np.full(EXAMPLE_SHAPE, -1000).tolist(), "affine": np.eye(4).tolist()}
REQUIREMENTS = ("connected-components-3d", "mlflow", "monai", "nibabel", "numpy", "torch", "torchio")


@dataclass(frozen=True)
class Registration:
    """A model to publish, with what it was found to be worth.

    Args:
        key: Content key of this registration; a key has one version, however often it is asked for.
        run_id: The training's run.
        name: The registered model.
        model: Folder with `model.safetensors` and `model.json`.
        evaluation: Folder with the evaluation's tables and `pictures/`.
        summary: What `liverseg_core.evaluation.measures.summarise` gave.
        validation: Digest of the case keys that it was measured on.
        data_key: The data version it was trained on, at most 36 characters.
        tolerance: How much lower the mean Dice may be than the champion's.
        tags: More tags: keys, commit, recipe.
    """

    key: str
    run_id: str
    name: str
    model: Path
    evaluation: Path
    summary: Mapping[str, Any]
    validation: str
    data_key: str
    tolerance: float
    tags: Mapping[str, str]


def register(tracking: Tracking, request: Registration) -> VersionRecord:
    """Publish a model as a version and give it its aliases.

    Raises:
        LiversegError: LS401 when MLflow fails; LS502 when a model's file is not the one that was made; LS503
            when what was stored is not what was sent; LS523 when the stored model does not predict; LS602
            when another registration takes too long.
    """
    with _one_at_a_time(tracking), service(tracking.uri):
        client = MlflowClient()
        with contextlib.suppress(MlflowException):  # it exists
            client.create_registered_model(request.name)
        found = client.search_model_versions(f"name = '{request.name}' and tags.`{KEY}` = '{request.key}'")
        version = found[0] if found else _publish(client, request)
        with tempfile.TemporaryDirectory() as folder:
            fetch_model(f"models:/{request.name}/{version.version}", Path(folder))
        reason, against = set_aliases(client, version, request.tolerance)
        record = version_record(client.get_model_version(request.name, version.version), reason)
        return replace(record, against=against)


def _publish(client: MlflowClient, request: Registration) -> ModelVersion:
    """Log evaluation and model to the run; the version comes last, when all it names is stored."""
    artifact = load(request.model)
    if artifact is not None:
        verify(artifact)
    _log_evaluation(client, request)
    _log_learning_curves(client, request, artifact)
    files = model_files(request.model, request.evaluation)
    digest = model_digest(request.model, request.evaluation)
    with mlflow.start_run(run_id=request.run_id):
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={name: str(path) for name, path in files.items()},
            signature=SIGNATURE,
            input_example=EXAMPLE,
            # Named, or MLflow finds out by running the model in a second environment.
            pip_requirements=[f"{name}=={found}" for name, found in library_versions(REQUIREMENTS).items()],
            tags={DIGEST: digest},
        )
    _check_prediction(logged.model_uri)
    _log_metrics(client, request, logged.model_id)
    dice = {DICE[group]: request.summary[group]["dice"] for group in DICE}
    tags = {
        **request.tags,
        KEY: request.key,
        DIGEST: digest,
        VALIDATION: request.validation,
        **{name: f"{value:.6f}" for name, value in dice.items() if value is not None},
    }
    return client.create_model_version(
        request.name, logged.model_uri, request.run_id, tags, model_id=logged.model_id
    )


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
        learning_curves_png(picture, history, stops, f"{request.name} {model.key[:8]}")
        client.log_artifact(request.run_id, str(picture))


def _log_metrics(client: MlflowClient, request: Registration, model_id: str) -> None:
    """Final measures, linked to the model and to the data, so that either finds the other."""
    dataset = Dataset("liverseg", request.data_key, "liverseg", json.dumps({"key": request.data_key}))
    client.log_inputs(request.run_id, datasets=[DatasetInput(dataset)])
    # MLflow refuses a value that the run has at this time for another model: each model has its own time.
    stamp = client.get_logged_model(model_id).creation_timestamp
    link = (model_id, dataset.name, dataset.digest, request.run_id)
    metrics = [Metric(name, value, stamp, 0, *link) for name, value in _final(request.summary)]
    client.log_batch(request.run_id, metrics=metrics)


def _final(summary: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every mean that is worth a column, by name; what no case defines has none."""
    for group in DICE:
        measures = summary[group]
        found = {f"dice_{name}": policy["mean"] for name, policy in measures["policies"].items()}
        found |= {f"dice_{name}": measures["policies"]["nan"][name] for name in ("median", "sd")}
        found |= {name: measures.get(name) for name in MEANS}
        yield from ((f"evaluate/{group}/{name}", value) for name, value in found.items() if value is not None)
    lesions = summary.get("lesions", {}).get("iou_50", {}).get("all", {})
    found = {f"lesions/{name}": lesions.get(name) for name in ("recall", "precision", "f1")}
    found["burden_rmse"] = summary.get("burden", {}).get("rmse")
    yield from ((f"evaluate/{name}", value) for name, value in found.items() if value is not None)


def _check_prediction(uri: str) -> None:
    """Load what was stored and predict the example: MLflow's own check of it only warns."""
    try:
        label = mlflow.pyfunc.load_model(uri).predict(EXAMPLE)
        sound = label.dtype == np.uint8 and label.shape == EXAMPLE_SHAPE and label.max() <= 2
        trouble = "" if sound else f"predicts {label.dtype} of shape {label.shape}"
    except Exception as error:  # whatever it raises, it does not predict
        trouble = f"{type(error).__name__}: {error}"
    if trouble:
        raise LiversegError(
            "LS523",
            f"the stored model does not work ({trouble})",
            "a model that labels the example volume",
            "Run `liverseg doctor`; nothing was registered",
        )


@contextlib.contextmanager
def _one_at_a_time(tracking: Tracking) -> Iterator[None]:
    """Serialise registrations of a local store; the kernel drops the lock of a process that dies."""
    if tracking.folder is None:
        yield
        return
    with (tracking.folder / ".register.lock").open("a") as file:
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LiversegError(
                        "LS602",
                        f"another registration has held {file.name} for {LOCK_WAIT_S:.0f} s",
                        "one registration at a time",
                        "Wait for it to end, or stop it, then run the same command again",
                    ) from None
                time.sleep(0.1)
        yield
