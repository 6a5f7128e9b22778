"""What the same cases cost torchio, MONAI and nnU-Net, one thread and one process each, beside ours."""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ingest_data import SMALL, bytes_below, files_of, prepared
from peers_environment import PEERS, python_of, run_in

from liverseg_core.sources.source import CaseSource

Row = dict[str, Any]
OURS = "liverseg"
CASES = {
    "torchio": ("full-300", "full-330", "full-360", "full-390", "full-420", "giant-987", "thick-80", "lidc"),
    "monai": ("full-300", "full-330", "full-360", "full-390", "full-420", "giant-987", "thick-80", "lidc"),
    "nnunet": ("full-300", "full-330", "full-360", "full-390", "full-420", "thick-80"),
}
"""nnU-Net takes minutes a case, and none without a label."""
GOAL = {"torchio": 10.0, "nnunet": 50.0}


def peers(folder: Path, environments: Path) -> Row:
    """Every peer on its cases, and ours on the same case right before it.

    A machine with other work makes CPU seconds longer, so a ratio is of two that follow each other. A peer
    that can't be installed or fails says why.
    """
    rows: list[Row] = []
    missing = {}
    for peer in CASES:
        try:
            for row in _side_by_side(peer, folder, environments):
                rows.append(row)  # one by one: what was measured before a failure stays
        except subprocess.CalledProcessError as error:
            missing[peer] = f"{Path(error.cmd[1]).name}: {error.stderr.strip()[-1000:]}"
            print(f"{peer}: {missing[peer]}", file=sys.stderr)
    return {
        "goal": GOAL,
        "versions": {peer: (PEERS / f"{peer}.txt").read_text().split() for peer in CASES},
        "full_size": {peer: _summary(rows, peer) for peer in CASES if peer not in missing},
        "missing": missing,
        "cases": rows,
    }


def _side_by_side(peer: str, folder: Path, environments: Path) -> Iterator[Row]:
    cases, python = prepared(folder), python_of(peer, environments)
    for case in (cases[name] for name in CASES[peer] if name in cases):
        ours = _measure(OURS, Path(sys.executable), folder, case)
        theirs = _measure(peer, python, folder, case)
        yield ours
        yield {**theirs, "cpu_ratio": round(theirs["cpu_s"] / ours["cpu_s"], 1)}


def _measure(peer: str, python: Path, folder: Path, case: CaseSource) -> Row:
    """One case in a fresh process.

    A peer's figures are without what a case of 64 voxels a side costs, since nnU-Net starts processes anew
    for every dataset; ours are with it.
    """
    print(f"{peer} {case.case}", file=sys.stderr)
    small, files = files_of(folder, prepared(folder)[SMALL]), files_of(folder, case)
    with tempfile.TemporaryDirectory(prefix=f"liverseg-{peer}-", dir=folder) as scratch:
        arguments = [scratch, *map(str, (*small, *files))]
        found = json.loads(run_in(python, f"run_{peer}.py", arguments, Path(scratch)))
        written = bytes_below(Path(scratch) / "case0")
    fixed_cpu, fixed_wall = (0.0, 0.0) if peer == OURS else found["fixed"].values()
    runs = found["runs"]
    return {
        "peer": peer,
        "case": case.case,
        "runs": len(runs),
        "cpu_s": round(statistics.median(run["all"][0] for run in runs) - fixed_cpu, 3),
        "wall_s": round(statistics.median(run["all"][1] for run in runs) - fixed_wall, 3),
        "phases_cpu_s": {name: cost[0] for name, cost in runs[0].items() if name != "all"},
        "small_case_cpu_s": found["fixed"]["cpu_s"],
        "import_cpu_s": found["import_cpu_s"],
        "peak_mb": found["peak_mb"],
        "above_baseline_mb": found["peak_mb"] - found["baseline_mb"],
        "bytes_written": written,
    }


def _summary(rows: list[Row], peer: str) -> Row:
    chosen = [row for row in rows if row["peer"] == peer and row["case"].startswith("full")]
    ratios = [row["cpu_ratio"] for row in chosen]
    median = round(statistics.median(ratios), 1)
    holds = {"goal_holds": median >= GOAL[peer]} if peer in GOAL else {}
    return {"cases": len(ratios), "median_ratio": median, "least_ratio": min(ratios), **holds}
