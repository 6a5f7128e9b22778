"""`liverseg predict` of a whole scan against nnU-Net's command: same network, windows and overlap.

    python benchmarks/predict.py [--repeats N] [--shape X Y Z] [--steps N] [--peers FOLDER]

writes benchmarks/results/predict.json. Both sides are whole processes, from the scan's file to the label's,
in turns, with as many threads as there are cores. The scan is a phantom, 512 × 512 × 300 unless told
otherwise, and the network a residual-encoder U-Net at 1.5 mm that was trained on smaller phantoms for a few
minutes, so that it predicts an organ and not noise; it is kept beside the peers' environments. nnU-Net builds
its own class of it and is given the same weights. Both predict one window at a time and mirror none. Its
processes are as many as it takes by itself, and `nnUNet_def_n_proc`, its threads, is the number of cores.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from machine import describe
from peers_environment import PEERS, python_of
from whole_process import run_measured

from flows.settings import load_settings
from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.cases.ingest import ingest_case
from liverseg_core.models.model import INFERENCE, SPEC, WEIGHTS, ModelSpec
from liverseg_core.phantom.case import phantom_case
from liverseg_core.phantom.dataset import PhantomSpec, write_phantom_tar
from liverseg_core.sources.source import open_source
from liverseg_core.training.train import train
from liverseg_core.training.train_job import TrainJob

RESULT = Path(__file__).parent / "results" / "predict.json"
TRAINING = (
    "ingest.spacing_mm=[1.5, 1.5, 1.5]",
    "train.network={name: resenc, channels: [16, 32, 64, 128], blocks: [1, 3, 4, 6]}",
    "train.patch_size=[48, 48, 48]", "train.precision=fp32", "train.optimiser=adamw",
    "train.learning_rate=2e-3", "train.weight_decay=0.01", "train.schedule=cosine", "train.warmup=20",
    "train.ema=0.98", "train.validate_every=0", "train.log_every=20",
    "train.class_mixture=[0.3, 0.4, 0.3]", "train.window_hu=[-150, 250]",
)  # fmt: skip
CASES = PhantomSpec(cases=6, unlabelled=0, size=(256, 256, 144))
WINDOW = (96, 96, 96)
SEED, INDEX = 11, 2
"""Of the scan; none of `CASES`."""
SPACING_MM = (0.78, 0.78, 1.0)
"""Of the scan, as such a scan of an abdomen has it, whatever the phantom's would be."""
OVERLAP = 0.5
COSTS = ("cpu_s", "wall_s", "peak_mb", "all_processes_mb")
BARS = {"cpu_s": 0.62, "wall_s": 0.62, "peak_mb": 0.5}
"""Of nnU-Net's, at most."""


def main() -> None:
    """Train once, predict in turns, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 300))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--processes", type=int, default=3, help="nnU-Net's -npp and -nps")
    parser.add_argument("--peers", type=Path, default=Path("~/.cache/liverseg/peers").expanduser())
    options = parser.parse_args()
    python = python_of("nnunet", options.peers)
    model = trained_model(options.peers / f"predict-{options.steps}", options.steps)
    with tempfile.TemporaryDirectory(prefix="liverseg-predict-") as temporary:
        folder = Path(temporary)
        voxels = write_scan(folder / "scans" / "scan_0000.nii.gz", tuple(options.shape))
        _call([str(python), str(PEERS / "nnunet_model.py"), str(model), str(folder / "nnunet")])
        ours, theirs = commands(folder, model, python, options.processes)
        sides: dict[str, list[dict[str, Any]]] = {"liverseg": [], "nnunet": []}
        load = os.getloadavg()[0]
        for n in range(options.repeats):
            pairs = [("liverseg", ours), ("nnunet", theirs)]
            for side, command in reversed(pairs) if n % 2 else pairs:
                sides[side].append(measure(side, command, folder))
        result = {
            "machine": describe() | {"load_before": round(load, 1)},
            "scan": voxels | {"window": WINDOW, "overlap": OVERLAP},
            "nnunet_processes": options.processes,
            **compare(sides),
            "agreement": agreement(folder / "ours" / "scan.nii.gz", folder / "theirs" / "scan.nii.gz"),
        }
    text = json.dumps(result, indent=1)
    RESULT.write_text(text + "\n")
    print(text)


def trained_model(folder: Path, steps: int) -> Path:
    """The network of both sides; trained where it isn't there yet."""
    settings = load_settings("resenc", [*TRAINING, f"train.steps={steps}"], {})
    if (folder / INFERENCE).exists():
        return folder
    with tempfile.TemporaryDirectory(prefix="liverseg-predict-") as temporary:
        work = Path(temporary)
        write_phantom_tar(work / "phantom.tar", CASES)
        cases = [
            ingest_case(case, settings.ingest, LocalStore(work / "store")).path
            for case in open_source(str(work / "phantom.tar")).cases
        ]
        job = TrainJob(cases, settings.train, settings.ingest, settings.compute, "benchmark")
        train(job, work, lambda step, values: print(step, values, file=sys.stderr))
        folder.mkdir(parents=True, exist_ok=True)
        spec = ModelSpec.model_validate_json((work / SPEC).read_bytes())
        shutil.copy(work / WEIGHTS, folder)
        whole = spec.model_copy(update={"patch_size": WINDOW})
        (folder / SPEC).write_text(json.dumps(whole.canonical()))
        inference = {"overlap": OVERLAP, "weights": "gaussian", "batch_size": 1}
        (folder / INFERENCE).write_text(json.dumps(inference))
    return folder


def write_scan(path: Path, shape: tuple[int, int, int]) -> dict[str, Any]:
    """A phantom with canonical axes, since nnU-Net takes axes as they are stored."""
    image, _, affine = phantom_case(SEED, INDEX, shape)
    stored = nib.as_closest_canonical(nib.Nifti1Image(image, affine))
    path.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.asarray(stored.dataobj), np.diag([*SPACING_MM, 1])), path)
    return {"shape": list(stored.shape), "spacing_mm": SPACING_MM}


def commands(folder: Path, model: Path, python: Path, processes: int) -> tuple[list[str], list[str]]:
    """Ours and nnU-Net's."""
    scans = folder / "scans"
    ours = [
        sys.executable, str(PEERS / "predict_liverseg.py"), str(folder / "liverseg.json"), "predict",
        str(scans / "scan_0000.nii.gz"), "--model", str(model), "-o", str(folder / "ours" / "scan.nii.gz"),
        "--device", "cpu",
    ]  # fmt: skip
    theirs = [
        str(python), str(PEERS / "predict_nnunet.py"), str(folder / "nnunet.json"),
        "-i", str(scans), "-o", str(folder / "theirs"), "-m", str(folder / "nnunet"), "-f", "0",
        "-device", "cpu", "--disable_tta", "-step_size", str(1 - OVERLAP), "--disable_progress_bar",
        "-npp", str(processes), "-nps", str(processes),
    ]  # fmt: skip
    return ours, theirs


def measure(side: str, command: list[str], folder: Path) -> dict[str, Any]:
    """What one run of a side costs, and where its time goes."""
    cores = str(os.cpu_count())
    environment = {"OMP_NUM_THREADS": cores, "nnUNet_def_n_proc": cores}
    cost = run_measured(command, environment, folder / f"{side}.log")
    cost["cpu_s"] = round(cost["user_s"] + cost["system_s"], 1)
    phases = json.loads((folder / f"{side}.json").read_text())
    print(side, cost, json.dumps(phases), file=sys.stderr)
    return {**cost, "phases": phases}


def compare(sides: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The middle run of each side by what it cost, and ours as a share of theirs."""
    middle = {
        side: {what: statistics.median(run[what] for run in runs) for what in COSTS}
        for side, runs in sides.items()
    }
    shares = {what: round(middle["liverseg"][what] / value, 3) for what, value in middle["nnunet"].items()}
    return {"liverseg_over_nnunet": shares, "bars": BARS, "medians": middle, "runs": sides}


def agreement(ours: Path, theirs: Path) -> dict[str, float]:
    """How alike the two labels are: Dice of all that is no background, and its share of the scan."""
    first, second = (np.asarray(nib.load(path).dataobj) > 0 for path in (ours, theirs))
    both = int(np.count_nonzero(first)) + int(np.count_nonzero(second))
    same = 2 * int(np.count_nonzero(first & second)) / both if both else 1.0
    return {"dice": round(same, 4), "share_of_scan": round(both / 2 / first.size, 4)}


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)


if __name__ == "__main__":
    main()
