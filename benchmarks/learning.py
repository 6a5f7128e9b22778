"""Phantom Dice against CPU time: our recipes and nnU-Net, one core and the same budget each.

    python benchmarks/learning.py [--minutes 20] [--cases 60] [--held-out 12] [--only NAME ...]

writes benchmarks/results/learning.json and learning.png, curve by curve; what was made alike is kept. All
train on the same phantom cases, on one core, for as many steps as the budget of CPU time holds, and their
learning rate schedule is spread over those. What they predict of the held-out scans at points on the way is
scored in the scans' own geometry. Ingest, preprocessing and prediction are not in the budget. nnU-Net runs as
it plans itself, and with our patch and spacing and smaller networks, so that the budget is fair to it.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from machine import describe
from matplotlib.figure import Figure
from peers_environment import python_of, run_in

from flows.settings import load_settings
from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.cases.ingest import ingest_case
from liverseg_core.drawing import BACKGROUND, FAINT, INK
from liverseg_core.evaluation.score import score
from liverseg_core.phantom.dataset import PhantomSpec, write_phantom_tar
from liverseg_core.sources.source import open_source

RESULTS = Path(__file__).parent / "results"
PHANTOM = load_settings("phantom", [], {})
AUGMENT = f"train.augment={json.dumps(PHANTOM.train.augment.canonical())}"
WINDOW = f"train.window_hu={json.dumps(PHANTOM.train.window_hu)}"
SMALL: Mapping[str, Sequence[str]] = {
    "phantom": (),
    "resenc": (
        "train.network={name: resenc, channels: [16, 32, 64, 128], blocks: [1, 1, 2, 2], norm: batch}",
        "train.patch_size=[48, 48, 48]", "train.precision=fp32", "train.optimiser=adamw",
        "train.learning_rate=3e-3", "train.weight_decay=0.01", "train.schedule=cosine", "train.ema=0.99",
        f"train.class_mixture={json.dumps(PHANTOM.train.class_mixture)}", AUGMENT, WINDOW,
    ),
    "unet": (
        "train.network={name: unet, channels: [16, 32, 64, 128], residual_units: 0}",
        "train.patch_size=[48, 48, 48]", "train.learning_rate=1e-3", WINDOW,
    ),
    "ahnet": ("train.patch_size=[64, 32, 32]", "train.learning_rate=1e-3", WINDOW),
}  # fmt: skip
"""What is smaller than in the recipes, or made for the phantom."""
SMALLER: dict[str, Any] = {"patch_size": [48, 48, 48], "spacing_mm": PHANTOM.ingest.spacing_mm}
NNUNET: Mapping[str, dict[str, Any] | None] = {
    "nnunet": None,
    "nnunet-24": {**SMALLER, "features": [24, 48, 96, 192], "batch_size": 4},
    "nnunet-12": {**SMALLER, "features": [12, 24, 48, 96], "batch_size": 2},
}
"""Ours begin at half resolution, nnU-Net's at full: with as many features its step costs 20 times as much."""
SPARE = 1.12
"""Steps are fixed beforehand, by a pace measured over a few: nobody shall have less than the budget."""
COLOURS = ("#ffd500", "#b45cff", "#6fc3ff", "#7ddc8a", "#ff8a70", "#e8e8ec", "#9a9aa6")


def main() -> None:
    """Make the phantom, let everyone learn from it, score, draw."""
    names = [*SMALL, *NNUNET]
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--held-out", type=int, default=12)
    parser.add_argument("--points", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--peers", type=Path, default=Path("~/.cache/liverseg/peers").expanduser())
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="liverseg-learning-"))
    try:
        data = phantom(folder, options.cases, options.held_out)
        budget = {"budget_s": SPARE * 60 * options.minutes, "points": options.points}
        for name in options.only:
            request = budget | {"out": str(folder / name)}
            found = learn(name, request, data, options.peers)
            curve = [curve_point(point, data["references"]) for point in found]
            print(name, json.dumps(curve), file=sys.stderr)
            keep(name, curve, options)
    finally:
        shutil.rmtree(folder)


def keep(name: str, curve: list[dict[str, float]], options: argparse.Namespace) -> None:
    """Add a curve to those that were made alike, and draw them all; others are no longer comparable."""
    path = RESULTS / "learning.json"
    cases = {"training": options.cases - options.held_out, "held_out": options.held_out}
    alike = {"machine": describe() | {"threads": 1}, "cases": cases, "budget_minutes": options.minutes}
    old = json.loads(path.read_text()) if path.exists() else {}
    curves = old.pop("curves", {}) if {k: v for k, v in old.items() if k != "curves"} == alike else {}
    curves[name] = curve
    ordered = {known: curves[known] for known in (*SMALL, *NNUNET) if known in curves}
    path.write_text(json.dumps(alike | {"curves": ordered}, indent=1) + "\n")
    draw(RESULTS / "learning.png", ordered, f"phantom, {options.held_out} held-out cases, one core")


def phantom(folder: Path, cases: int, held_out: int) -> dict[str, Any]:
    """The files of the phantom, and which of its cases nobody trains on."""
    tar = folder / "phantom.tar"
    write_phantom_tar(tar, PhantomSpec(cases=cases, unlabelled=0))
    with tarfile.open(tar) as archive:
        archive.extractall(folder / "raw", filter="data")
    (root,) = (path.parent for path in folder.glob("raw/*/dataset.json"))
    images, labels = (
        {path.name.removesuffix(".nii.gz"): str(path) for path in sorted((root / kind).glob("[!.]*.nii.gz"))}
        for kind in ("imagesTr", "labelsTr")
    )
    chosen = list(images)[-held_out:]
    references = folder / "references"
    references.mkdir()
    for name in chosen:
        (references / f"{name}.nii.gz").symlink_to(labels[name])
    training = [case for case in open_source(str(tar)).cases if case.case not in chosen]
    scans = {"images": images, "labels": labels, "held_out": chosen, "references": references}
    return {"folder": folder, "training": training, **scans}


def learn(name: str, request: dict[str, Any], data: dict[str, Any], peers: Path) -> list[dict[str, Any]]:
    """Points on a contender's way: its predictions there, CPU seconds, steps."""
    if name in NNUNET:
        told = {key: data[key] for key in ("images", "labels", "held_out")} | {"smaller": NNUNET[name]}
        return _run(python_of("nnunet", peers), "learn_nnunet.py", request | told)
    settings = load_settings(name, [*SMALL[name], f"ingest={json.dumps(PHANTOM.ingest.canonical())}"], {})
    stored = [
        ingest_case(case, settings.ingest, LocalStore(data["folder"] / "store")).path
        for case in data["training"]
    ]
    told = {
        "settings": {"train": settings.train.canonical(), "ingest": settings.ingest.canonical()},
        "channels_last": settings.compute.channels_last,
        "cases": [str(path) for path in stored],
        "images": {case: data["images"][case] for case in data["held_out"]},
    }
    return _run(Path(sys.executable), "learn_liverseg.py", request | told)


def _run(python: Path, script: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    out = Path(request["out"])
    out.mkdir()
    path = out / "request.json"
    path.write_text(json.dumps(request))
    try:
        printed = run_in(python, script, [str(path)], out)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{script}: {error.stderr}")
    points: list[dict[str, Any]] = json.loads(printed)
    return points


def curve_point(point: dict[str, Any], references: Path) -> dict[str, float]:
    """Mean Dice of a point's predictions; of tumour over the cases that have one or were given one."""
    summary = score(Path(point["folder"]), references)["summary"]
    dice = {group: round(summary[group]["dice"] or 0, 4) for group in ("liver", "tumour")}
    return {"cpu_minutes": round(point["cpu_s"] / 60, 2), "steps": point["steps"], **dice}


def draw(path: Path, curves: Mapping[str, Sequence[Mapping[str, float]]], title: str) -> None:
    """Dice of liver and tumour over CPU time, a line for each contender."""
    figure = Figure((11, 5), dpi=100, facecolor=BACKGROUND, layout="constrained")
    figure.suptitle(title, color=INK, fontsize=13, x=0.01, ha="left")
    for axes, group in zip(figure.subplots(1, 2), ("liver", "tumour"), strict=True):
        for (name, points), colour in zip(curves.items(), COLOURS, strict=False):
            line = "--" if name.startswith("nnunet") else "-"
            x, y = [point["cpu_minutes"] for point in points], [point[group] for point in points]
            axes.plot(x, y, line, color=colour, marker="o", markersize=4, linewidth=1.6, label=name)
        axes.set_facecolor(BACKGROUND)
        axes.set_title(f"mean Dice, {group}", color=INK, fontsize=11, loc="left")
        axes.set_xlabel("CPU minutes of training", color=INK)
        axes.set(ylim=(0, 1), xlim=(0, None))
        axes.tick_params(colors=FAINT, labelcolor=INK, length=0)
        axes.grid(color="#33333c", linewidth=0.8)
        axes.spines[:].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=6, frameon=False, labelcolor=INK, fontsize=9
    )
    figure.savefig(path, facecolor=BACKGROUND, metadata={"Software": None})


if __name__ == "__main__":
    main()
