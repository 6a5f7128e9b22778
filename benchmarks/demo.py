"""What the demo costs: wall time, CPU time and peak memory of its process tree, and the Dice it reaches.

    python benchmarks/demo.py [--store FOLDER]

writes benchmarks/results/demo.json. The phantom is written first; its time counts.
"""

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from machine import describe

RESULT = Path(__file__).parent / "results" / "demo.json"
LIVERSEG = str(Path(sys.executable).with_name("liverseg"))
INTERVAL_S = 0.25


def measure(command: list[str]) -> dict[str, float]:
    """Run a command and watch it and all its children.

    Memory is the sum of proportional set sizes, so that pages shared by several processes count once.
    """
    start, peak = time.monotonic(), 0.0
    process = psutil.Popen(command, stdout=sys.stderr)
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(INTERVAL_S):
            peak = max(peak, _memory_mb(process))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    done.set()
    watcher.join()
    if code:
        sys.exit(f"{' '.join(command)} ended with {code}")
    return {"seconds": round(time.monotonic() - start, 1), "peak_mb": round(peak)}


def _memory_mb(process: psutil.Process) -> float:
    total = 0.0
    try:
        for one in (process, *process.children(recursive=True)):
            total += one.memory_full_info().pss / 1e6
    except psutil.Error:  # one of them just ended
        pass
    return total


def main() -> None:
    """Measure the demo in an empty folder, then the same command again with everything cached."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, help="keep the store here")
    folder = Path(tempfile.mkdtemp(prefix="liverseg-demo-"))
    store = parser.parse_args().store or folder / "store"
    run = [LIVERSEG, "run", str(folder / "phantom.tar"), "--config", "phantom", "--store", str(store)]
    try:
        phantom = measure([LIVERSEG, "phantom", str(folder / "phantom.tar"), "--cases", "72"])
        first, again = measure(run), measure(run)
        (evaluation,) = store.glob("evaluations/*/metrics.json")
        summary = json.loads(evaluation.read_text())["summary"]
    finally:
        shutil.rmtree(folder)
    result = {
        "machine": describe(),
        "data": "phantom, 64 training and 8 validation cases",
        "phantom": phantom,
        "run": first,
        "run_again_cached": again,
        "total_seconds": round(phantom["seconds"] + first["seconds"], 1),
        "mean_dice": {group: round(summary[group]["dice"], 4) for group in ("liver", "liver_only", "tumour")},
        "validation_cases": summary["cases"],
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
