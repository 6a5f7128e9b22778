"""What an augmented patch costs, beside nnU-Net's loader and torchio's queue, and what 5,000 leave behind.

    python benchmarks/patches.py [--data FOLDER] [--peers FOLDER] [--repeats N]

writes benchmarks/results/patches.json. Two phantoms of 300 × 300 × 250 voxels of 1 mm are made first; FOLDER
keeps them. Every tool reads its own store of the same voxels, in a process of its own with one thread, and
they take turns, so that a busy machine is busy for all. One core: CPU milliseconds of the process, without
workers. All cores: patches a second of wall time with a worker for each, once.

Two sets. `affine`: RandomAffine's scales of 0.9 to 1.1 and ±10° for every patch, nothing else. `all`: what
nnU-Net's trainer does, each as often as it does. What differs within them:
- nnU-Net draws rotation and scaling apart, each for a fifth of the patches; ours and torchio's draw both for
  the 36 % that get either. It reads a box of the largest margin for every patch, as it comes.
- torchio has no brightness, contrast or vote for labels, and turns, blurs and so on whole volumes (256 × 256
  × 200, of each of which it takes 5 patches). Its low resolution acts along one axis.
- nnU-Net's gamma rescales to the patch's range and restores mean and spread.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from peers_environment import python_of, run_in

from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.cases.ingest import ingest_case
from liverseg_core.cases.store import open_case
from liverseg_core.config import IngestConfig
from liverseg_core.phantom.dataset import PhantomSpec, write_phantom_tar
from liverseg_core.sources.source import open_source

RESULT = Path(__file__).parent / "results" / "patches.json"
PHANTOM = PhantomSpec(cases=2, unlabelled=0, size=(300, 300, 250))
KEEP_VOXELS = IngestConfig(spacing_mm=None)
SIZES = (96, 128)
SETS: dict[str, dict[str, Any]] = {
    "affine": {"affine_probability": 1, "label_interpolation": "vote"},
    "all": {
        "affine_probability": 0.36,
        "label_interpolation": "vote",
        "flip_probability": 0.5,
        "gamma_probability": 0.37,
        "brightness_probability": 0.15,
        "contrast_probability": 0.15,
        "blur_probability": 0.1,
        "low_resolution_probability": 0.125,
        "noise_probability": 0.1,
    },
}
PATCHES = {"stream": 400, "read": 400, "nnunet": 100, "queue": 40}
SOAK = 5000


def prepare(folder: Path) -> None:
    """Phantoms, our store of them, and plain arrays for nnU-Net's; what is there stays."""
    tar = folder / "phantoms.tar"
    if not tar.exists():
        write_phantom_tar(tar, PHANTOM, progress=lambda case: print(f"phantom {case}", file=sys.stderr))
    (folder / "arrays").mkdir(exist_ok=True)
    for case in open_source(str(tar)).cases:
        stored = open_case(ingest_case(case, KEEP_VOXELS, LocalStore(folder / "store")).path)
        file = folder / "arrays" / f"{stored.name}.npz"
        if not file.exists():
            np.savez(file, image=stored.image[...], label=stored.label[...])


def measure(folder: Path, peers: Path, way: str, size: int, which: str, workers: int) -> dict[str, Any]:
    """One run of one tool."""
    count = PATCHES[way] * (2 if workers else 1)
    if way == "nnunet":
        script, place, chosen, last = "patches_nnunet.py", folder / "arrays", which, []
        python = python_of("nnunet", peers)
    else:
        script, place, chosen, last = "patches_liverseg.py", folder / "store", json.dumps(SETS[which]), [way]
        python = Path(sys.executable)
    arguments = [str(place), str(size), chosen, str(count), str(workers), *last]
    found: dict[str, Any] = json.loads(run_in(python, script, arguments, folder))
    return found


def compare(folder: Path, peers: Path, chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every tool, size, set and number of workers, taking turns."""
    for size, which, workers in product(chosen.sizes, chosen.sets, sorted({0, chosen.workers})):
        ways = ["stream", "nnunet", "queue"] + ([] if workers else ["read"])
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for _, way in product(range(1 if workers else chosen.repeats), ways):
            runs[way].append(measure(folder, peers, way, size, which, workers))
            print(size, which, workers, way, runs[way][-1], file=sys.stderr)
        yield {"size": size, "set": which, "workers": workers, **summary(runs, workers)}


def summary(runs: dict[str, list[dict[str, Any]]], workers: int) -> dict[str, Any]:
    """Medians of the runs of each tool, and how many times ours is as fast."""
    row: dict[str, Any] = {}
    for way, found in runs.items():
        cost = [(run["wall_s"] if workers else run["cpu_s"]) / run["patches"] for run in found]
        row[way] = {"patches_per_s": round(1 / statistics.median(cost), 2), "runs": len(found)}
        if not workers:
            row[way]["cpu_ms"] = round(1000 * statistics.median(cost), 2)
    for way in ("nnunet", "queue"):
        row[f"times_{way}"] = round(row["stream"]["patches_per_s"] / row[way]["patches_per_s"], 1)
    return row


def soak(folder: Path, workers: int) -> dict[str, Any]:
    """Handles and memory on the way through many patches."""
    arguments = [str(folder / "store"), "96", json.dumps(SETS["all"]), str(SOAK), str(workers), "soak"]
    told = json.loads(run_in(Path(sys.executable), "patches_liverseg.py", arguments, folder))["told"]
    return {"workers": workers, "told": told}


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--peers", type=Path, default=Path.home() / ".cache" / "liverseg" / "peers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="0: one core only")
    parser.add_argument("--soak", type=int, nargs="*", default=(0, 2), help="numbers of workers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="liverseg-patches-") as temporary:
        folder = (options.data or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder)
        for row in compare(folder, options.peers, options):
            keep("rows", row, ("size", "set", "workers"))
        for workers in options.soak:
            keep("soak", soak(folder, workers), ("workers",))
    print(RESULT.read_text())


def keep(part: str, row: dict[str, Any], key: tuple[str, ...]) -> None:
    """Write a result, in the place of an older one of the same kind."""
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": [], "soak": []}
    others = [old for old in result[part] if any(old[name] != row[name] for name in key)]
    told = {**row, "load": round(os.getloadavg()[0], 1)}
    result |= {"machine": describe(), "versions": {"nnunetv2": "2.8.1", "torchio": "1.2.1"}}
    result[part] = sorted([*others, told], key=lambda found: [found[name] for name in key])
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
