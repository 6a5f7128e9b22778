"""Sliding-window inference: host memory on a long scan, and time beside MONAI's on the same network.

Memory is the peak of a process of its own that predicts a made-up scan of 512 × 512 × 987 at the network's
spacing, from its file to its files. Time is CPU seconds of one thread from HU to probabilities, in turns with
MONAI's `sliding_window_inference`: same network, window, overlap, weights and batch. "body" has the air
around it that a CT has, "full" none, so that no window is left out.

    python benchmarks/inference.py [--repeats N] [--slices N]
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from isal import igzip
from machine import describe
from monai.inferers import sliding_window_inference

from liverseg_core.config import EvaluateConfig, IngestConfig, NetworkConfig
from liverseg_core.inference.inference import predict_planes
from liverseg_core.inference.predict_scan import Wanted, predict_scan
from liverseg_core.models.intensity import normalise
from liverseg_core.models.model import Model, ModelSpec, save_model
from liverseg_core.models.networks import build_network

RESULT = Path(__file__).parent / "results" / "inference.json"
WINDOW_HU = (-200.0, 300.0)
TINY = NetworkConfig(channels=(4, 8), residual_units=0, norm="batch")
"""For memory, where the network is of no interest."""
MEASURED = NetworkConfig(channels=(16, 32, 64, 128), norm="instance")
RULES = {"largest_liver": True, "tumour_inside_liver": True, "smallest_lesion_ml": 0.05}
SHAPES = {"body": (384, 384, 168), "full": (240, 240, 168)}


def make_spec(network: NetworkConfig) -> ModelSpec:
    """A model of 96³ windows."""
    return ModelSpec(
        network=network,
        activation="softmax",
        patch_size=(96, 96, 96),
        window_hu=WINDOW_HU,
        ingest=IngestConfig(),
        data_key="none",
    )


def body_plane(width: int, height: int) -> np.ndarray:
    """A noisy ellipse, as an abdomen lies in its field of view, in air."""
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    noise = np.random.default_rng(0).normal(0, 20, x.shape)
    inside = (x / 0.85) ** 2 + (y / 0.6) ** 2 < 1
    return np.rint(np.where(inside, 60, -1000) + noise).astype(np.int16)


def write_scan(path: Path, slices: int) -> None:
    """A long scan at 1 mm, slice by slice; no two slices have the same noise in one place."""
    header = nib.Nifti1Header()
    header.set_data_shape((512, 512, slices))
    header.set_data_dtype(np.int16)
    header.set_sform(np.eye(4), 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    plane = body_plane(512, 512)
    inside = plane > -500
    with path.open("wb") as file, igzip.IGzipFile("", "wb", fileobj=file, mtime=0) as out:
        out.write(header.binaryblock + bytes(4))
        for k in range(slices):
            values = plane.copy()
            values[inside] = np.roll(plane[inside], 131 * k)
            out.write(values.tobytes())


def predict_long(folder: Path, everything: bool) -> dict[str, Any]:
    """Predict the long scan in this process; its own peak is what it says."""
    torch.set_num_threads(1)
    wanted = Wanted(folder / "scan.nii.gz", folder / "out" / "label.nii.gz", everything, everything)
    started, cpu = time.monotonic(), time.process_time()
    found = predict_scan(wanted, folder / "model", "cpu")
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return {
        "probabilities_and_uncertainty": everything,
        "peak_mb": round(int(peak.split()[1]) / 1024),
        "cpu_s": round(time.process_time() - cpu, 1),
        "wall_s": round(time.monotonic() - started, 1),
        "lesions": found["lesions"],
    }


def memory(slices: int) -> dict[str, Any]:
    """The peak of a process that predicts the long scan, without and with all there is to write."""
    with tempfile.TemporaryDirectory(prefix="liverseg-inference-") as temporary:
        folder = Path(temporary)
        (folder / "model").mkdir()
        write_scan(folder / "scan.nii.gz", slices)
        save_model(folder / "model", build_network(TINY, seed=5), make_spec(TINY))
        (folder / "model" / "inference.json").write_text(json.dumps(RULES))
        runs = []
        for everything in (False, True):
            command = [sys.executable, __file__, "--predict", str(folder)] + ["--everything"] * everything
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            runs.append(json.loads(done.stdout))
            print(runs[-1], file=sys.stderr)
    return {"shape": [512, 512, slices], "classes": 3, "rules": RULES, "runs": runs}


def ours(model: Model, image: np.ndarray, settings: EvaluateConfig) -> np.ndarray:
    """All planes, kept to be compared."""
    found = np.empty((3, *image.shape[::-1]), np.float32)
    for k, plane in enumerate(predict_planes(model, image, settings)):
        found[:, k] = plane
    return found.transpose(0, 3, 2, 1)


@torch.inference_mode()
def theirs(model: Model, image: np.ndarray, settings: EvaluateConfig) -> np.ndarray:
    """MONAI's way from the same HU."""
    found = sliding_window_inference(
        torch.from_numpy(normalise(image, WINDOW_HU))[None, None],
        model.spec.patch_size,
        settings.batch_size,
        lambda window: model.network(window).softmax(1),
        overlap=settings.overlap,
        mode=settings.weights,
        sigma_scale=0.125,
    )
    return np.asarray(found[0])


def compare(scan: str, weights: str, repeats: int) -> dict[str, Any]:
    """One scan with one kind of weights, in turns; the middle one of several times counts."""
    width, height, depth = SHAPES[scan]
    plane = body_plane(width, height)
    if scan == "full":
        plane = np.random.default_rng(0).normal(60, 20, plane.shape).astype(np.int16)
    image = np.stack([plane + k % 7 for k in range(depth)]).T
    model = Model(build_network(MEASURED, seed=5).eval(), make_spec(MEASURED), torch.device("cpu"))
    settings = EvaluateConfig(weights=weights, overlap=0.25, batch_size=4)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "ours": functools.partial(ours, model, image, settings),
        "monai": functools.partial(theirs, model, image, settings),
    }
    cpu_s: dict[str, list[float]] = {way: [] for way in ways}
    found = {}
    for n in range(repeats):
        for way in sorted(ways, reverse=bool(n % 2)):
            started = time.process_time()
            found[way] = ways[way]()
            cpu_s[way].append(round(time.process_time() - started, 2))
    asked = ours(model, image, settings.model_copy(update={"air_hu": None}))
    ratio = statistics.median(cpu_s["ours"]) / statistics.median(cpu_s["monai"])
    row = {
        "scan": scan,
        "weights": weights,
        "cpu_s": cpu_s,
        "ratio": round(ratio, 3),
        "largest_difference": float(np.abs(asked - found["monai"]).max()),
    }
    print(row, file=sys.stderr)
    return row


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slices", type=int, default=987)
    parser.add_argument("--predict", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--everything", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.predict:
        print(json.dumps(predict_long(options.predict, options.everything)))
        return
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    rows = [
        compare(*which, options.repeats)
        for which in (("body", "gaussian"), ("full", "gaussian"), ("full", "constant"))
    ]
    result = {
        "machine": describe(),
        "load_before": load,
        "versions": {"monai": "1.6.1", "torch": torch.__version__},
        "speed": {"shapes": SHAPES, "window": 96, "overlap": 0.25, "batch": 4, "rows": rows},
        "memory": memory(options.slices),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
