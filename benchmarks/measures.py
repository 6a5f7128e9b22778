"""What all measures of one case cost, beside MONAI's metrics for the same set.

    python benchmarks/measures.py [--data FOLDER] [--repeats N]

writes benchmarks/results/measures.json. The reference is a phantom's label of 512 × 512 × 400; the prediction
is that label pushed about by some 2 mm, with one lesion missed and one invented; FOLDER keeps both. Each tool
gets them in memory, in a process of its own with one thread, and they take turns. MONAI's metrics are Dice,
IoU, ASSD, HD95, the maximum distance and surface Dice, of liver, liver without tumours, and tumour. Ours are
these and also RVD, volumes, tumour burden and the lesions matched, counted by size and measured. Figures are
CPU seconds; the values agree to MONAI's single precision.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
from machine import describe
from peers_environment import run_in
from scipy import ndimage

from liverseg_core.arrays import Label
from liverseg_core.evaluation.overlap import union_box
from liverseg_core.phantom.dataset import phantom_case

RESULT = Path(__file__).parent / "results" / "measures.json"
SIZE = (512, 512, 400)
BUMP_VOXELS = 25
PUSH_VOXELS = 3.0
TOOLS = ("liverseg", "monai")


def prepare(folder: Path) -> None:
    """The pair and its spacing, as the tools read them; what is there stays."""
    if (folder / "spacing_mm.json").exists():
        return
    _, reference, affine = phantom_case(0, 1, SIZE)
    np.save(folder / "reference.npy", reference)
    np.save(folder / "prediction.npy", predict(reference, np.random.default_rng(0)))
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    (folder / "spacing_mm.json").write_text(json.dumps(spacing_mm))


def predict(reference: Label, rng: np.random.Generator) -> Label:
    """A prediction with the errors that networks make."""
    box = union_box(reference, reference)
    part = reference[box]
    places = np.indices(part.shape, dtype=np.float32)
    for axis in range(3):
        bumps = rng.standard_normal([n // BUMP_VOXELS + 2 for n in part.shape]).astype(np.float32)
        places[axis] += PUSH_VOXELS * ndimage.zoom(
            bumps, [n / m for n, m in zip(part.shape, bumps.shape, strict=True)], order=1
        )
    pushed: Label = ndimage.map_coordinates(part, places, order=0)
    lesions = cc3d.connected_components(pushed == 2, connectivity=6)
    pushed[lesions == np.argmax(np.bincount(lesions.ravel())[1:]) + 1] = 1
    pushed[ball_within(pushed, rng)] = 2
    prediction: Label = np.zeros_like(reference)
    prediction[box] = pushed
    return prediction


def ball_within(label: Label, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """The liver within 8 voxels of some place in it."""
    liver = np.argwhere(label == 1)
    near = liver[((liver - rng.choice(liver)) ** 2).sum(axis=1) < 64]
    return tuple(near.T)


def disagreement(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The largest relative difference of any value of any class group."""
    largest = 0.0
    for measure, values in theirs.items():
        for group, value in zip(("liver", "liver_only", "tumour"), values, strict=True):
            found = 1 - ours[group]["voe"] if measure == "jaccard" else ours[group][measure]
            largest = max(largest, abs(found / value - 1))
    return largest


def compare(folder: Path, repeats: int) -> dict[str, Any]:
    """Both tools, taking turns."""
    runs: dict[str, list[dict[str, Any]]] = {tool: [] for tool in TOOLS}
    for _ in range(repeats):
        for tool, found in runs.items():
            printed = run_in(Path(sys.executable), f"measures_{tool}.py", [str(folder)], folder)
            found.append(json.loads(printed))
            print(tool, found[-1]["cpu_s"], file=sys.stderr)
    cpu_s = {tool: statistics.median(run["cpu_s"] for run in found) for tool, found in runs.items()}
    result: dict[str, Any] = {
        tool: {"cpu_s": cpu_s[tool], "cpu_s_runs": [run["cpu_s"] for run in found]}
        | {key: found[0][key] for key in ("resident_mb", "peak_mb")}
        for tool, found in runs.items()
    }
    ours, theirs = runs["liverseg"][0], runs["monai"][0]
    result["monai"]["cpu_s_by_metric"] = theirs["cpu_s_by_metric"]
    result["times_monai"] = round(cpu_s["monai"] / cpu_s["liverseg"], 1)
    result["largest_relative_difference"] = disagreement(ours["record"], theirs["values"])
    result["record"] = ours["record"]
    return result


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="keeps the pair")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="liverseg-measures-") as temporary:
        folder = (options.data or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder)
        result = {"machine": describe(), "shape": SIZE, **compare(folder, options.repeats)}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in (*TOOLS, "times_monai")}, indent=1))


if __name__ == "__main__":
    main()
