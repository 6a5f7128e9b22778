"""Train one of our recipes for a CPU budget and predict held-out scans on the way; started by ../learning.py.

    python learn_liverseg.py REQUEST

REQUEST is a JSON file: `settings` with sections train and ingest, `channels_last`, folders of `cases`,
`images` by name of held-out scans, `budget_s`, `points` on the curve, and `out`. Prints one line of JSON: for
each point the folder of its predictions, CPU seconds of training up to there, and steps.
"""

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from step_meter import cpu_s

from liverseg_core.config import ComputeConfig, EvaluateConfig, IngestConfig, TrainConfig
from liverseg_core.inference.predict import segment
from liverseg_core.models.model import Model, ModelSpec
from liverseg_core.models.networks import build_network
from liverseg_core.training.checkpoint import load_latest
from liverseg_core.training.train import TrainJob, train
from liverseg_core.volumes.nifti import read_nifti, write_label

PROBE = 12


def main(request: dict[str, Any]) -> None:
    """Find out what a step costs, then train as many as the budget holds."""
    torch.set_num_threads(1)
    config = TrainConfig.model_validate(request["settings"]["train"])
    ingest = IngestConfig.model_validate(request["settings"]["ingest"])
    compute = ComputeConfig(device="cpu", channels_last=request["channels_last"])
    cases = [Path(case) for case in request["cases"]]

    def job(config: TrainConfig, **told: Any) -> TrainJob:
        return TrainJob(cases, config, ingest, compute, "benchmark", **told)

    marks: dict[int, float] = {}
    short = config.model_copy(update={"steps": PROBE, "validate_every": 0, "warmup": 0})
    with tempfile.TemporaryDirectory() as folder:
        probe = job(short, progress=lambda step, _: marks.update({step: cpu_s()}))
        train(probe, Path(folder), lambda *_: None)
    steps = int(request["budget_s"] / ((marks[PROBE] - marks[4]) / (PROBE - 4)))
    every = math.ceil(steps / request["points"])
    whole = config.model_copy(
        update={
            "steps": every * request["points"], "checkpoint_every": every, "validate_every": 0,
            "warmup": min(config.warmup, steps // 20),
        }
    )  # fmt: skip
    points: list[dict[str, Any]] = []
    not_training = cpu_s()

    def saved(checkpoints: Path) -> None:
        nonlocal not_training
        used = cpu_s() - not_training
        before = cpu_s()
        out = Path(request["out"]) / str(len(points))
        step = predict(whole, ingest, checkpoints, request, out)
        points.append({"folder": str(out), "cpu_s": round(used, 1), "steps": step})
        not_training += cpu_s() - before

    with tempfile.TemporaryDirectory() as folder:
        train(job(whole, saved=saved), Path(folder), lambda *_: None)
    print(json.dumps(points))


def predict(
    config: TrainConfig, ingest: IngestConfig, checkpoints: Path, request: dict[str, Any], out: Path
) -> int:
    """Predict the held-out scans with the weights of the last checkpoint."""
    found = load_latest(checkpoints, "benchmark", sys.exit)
    assert found is not None
    network = build_network(config.network).eval()
    network.load_state_dict(found.state["average" if config.ema else "network"])
    spec = ModelSpec(
        network=config.network, activation="sigmoid" if config.loss == "bce" else "softmax",
        patch_size=config.patch_size, window_hu=config.window_hu, ingest=ingest, data_key="benchmark",
    )  # fmt: skip
    model = Model(network, spec, torch.device("cpu"), EvaluateConfig(overlap=0.5))
    out.mkdir(parents=True)
    for name, image in request["images"].items():
        volume = read_nifti(Path(image))
        write_label(out / f"{name}.nii.gz", segment(model, volume), volume.header)
    return found.step


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
