"""What orchestration costs: a case of no work through Prefect and Dask, and a flow with everything cached.

    python benchmarks/overhead.py [--cases 1000] [--runs 5]

writes benchmarks/results/overhead.json. One Prefect task maps a function that only returns a record over N
simulated cases, on two Dask workers, as ingest maps its cases; the same without Dask stands beside it. In a
cluster's environment (`. cluster/env` after `make up`, a run of its deployment completed) the deployment is
run again and again instead: seconds from asking for a run to its end, and of the run alone.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import describe
from prefect import flow, task

from flows.local_api import local_api
from flows.runners import open_runner
from liverseg_core.config import ComputeConfig

RESULT = Path(__file__).parent / "results" / "overhead.json"
NAME = "ingest-train-evaluate"
RECORD = {"shape": [512, 512, 432], "spacing_mm": [0.7, 0.7, 1.0], "hu": list(range(12)), "digest": "0" * 64}


def simulated(case: int) -> dict[str, Any]:
    """What a worker would send back of a case."""
    return RECORD | {"case": f"liver_{case}"}


@flow(name="overhead", persist_result=False)
def mapped(cases: int, workers: int) -> dict[str, float]:
    """Map over the cases in one task, as a stage does."""
    return _stage(cases, workers)


@task(name="stage", persist_result=False)
def _stage(cases: int, workers: int) -> dict[str, float]:
    started = time.perf_counter()
    with open_runner(ComputeConfig(workers=workers)) as runner:
        ready = time.perf_counter()
        found = sum(outcome.error is None for outcome in runner.map(simulated, range(cases)))
        assert found == cases
        ended = time.perf_counter()
    return {"start_s": round(ready - started, 2), "ms_per_case": round(1000 * (ended - ready) / cases, 3)}


def cached_runs(count: int) -> dict[str, list[float]]:
    """Seconds of runs of the deployment that find everything done."""
    asked, alone = [], []
    for _ in range(count):
        started = time.perf_counter()
        command = ["prefect", "deployment", "run", NAME, "--watch"]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        asked.append(round(time.perf_counter() - started, 1))
        run = printed.split("UUID:")[1].split()[0]
        told = subprocess.run(
            ["prefect", "flow-run", "inspect", run, "--output", "json"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        alone.append(round(json.loads(told.stdout)["total_run_time"], 1))
    return {"from_asking_s": asked, "run_s": alone}


def main() -> None:
    """Measure both, the second where there is a cluster."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    old = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    found: dict[str, Any] = {"machine": describe()}
    if "PREFECT_API_URL" in os.environ:
        times = cached_runs(options.runs)
        medians = {f"median_{name}": statistics.median(values) for name, values in times.items()}
        found["cluster"] = {"services": "make up", **times, **medians}
    else:
        with local_api():
            run = functools.partial(mapped, options.cases)
            found["cases"] = options.cases
            found["prefect_and_two_dask_workers"] = run(2)
            found["prefect_alone"] = run(0)
    print(json.dumps(found, indent=1), file=sys.stderr)
    RESULT.write_text(json.dumps(old | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
