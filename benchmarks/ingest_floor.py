"""What ingest costs beside its floor, inflating the same bytes, and where in it the CPU time goes."""

import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from operator import truediv
from pathlib import Path
from typing import Any

from ingest_data import SMALL, fine, full_size, prepared
from isal import igzip
from peers.meter import status_mb

from liverseg_core.artifacts.artifact import Artifact
from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.cases.case_writer import CaseWriter
from liverseg_core.cases.ingest import case_slabs, ingest_case, survey_case
from liverseg_core.cases.label_survey import LabelSurvey
from liverseg_core.cases.scans import open_scans
from liverseg_core.cases.target import plan_target
from liverseg_core.config import IngestConfig
from liverseg_core.sources.source import CaseSource

Row = dict[str, Any]
Slab = tuple[int, Any, Any]
CONFIG = IngestConfig()
PIECE = 1 << 20
GOAL = {"cpu_ratio": 2.0, "above_baseline_mb": 400}


def floor(folder: Path, repeats: int) -> Row:
    """Every case at 1 mm, linear; floor and ingest take turns in one process."""
    cases = prepared(folder)
    ingest(cases[SMALL])
    chosen = [case for name, case in cases.items() if name != SMALL]
    rows = [_measure(folder, case, repeats) for case in (*chosen, *map(fine, full_size(cases)))]
    return {
        "goal": GOAL,
        "repeats": repeats,
        "median_of_full": _median(rows, "full"),
        "median_of_full_if_fine": _median(rows, "fine"),
        "cases": rows,
    }


def inflate(case: CaseSource) -> float:
    """The floor: CPU seconds to inflate the case's members, CRC checked, keeping nothing; reading is free."""
    seconds = 0.0
    for member in filter(None, (case.image, case.label)):
        packed = io.BytesIO(member.read())
        start = time.process_time()
        with igzip.open(packed) as file:
            while file.read(PIECE):
                pass
        seconds += time.process_time() - start
    return seconds


def ingest(case: CaseSource) -> tuple[float, float, Artifact]:
    """CPU and wall seconds of one case, from its source to its committed artifact."""
    with tempfile.TemporaryDirectory(prefix="liverseg-ingest-") as store:
        cpu, wall = time.process_time(), time.perf_counter()
        artifact = ingest_case(case, CONFIG, LocalStore(Path(store)))
        return time.process_time() - cpu, time.perf_counter() - wall, artifact


def memory_of(folder: Path, name: str) -> dict[str, int]:
    """What this process holds with everything imported, and at most while it ingests a case."""
    case = prepared(folder)[name]
    baseline = status_mb("VmRSS")
    ingest(case)
    return {"baseline_mb": baseline, "above_baseline_mb": status_mb("VmHWM") - baseline}


def _measure(folder: Path, case: CaseSource, repeats: int) -> Row:
    print(f"floor {case.case}", file=sys.stderr)
    floors, runs = zip(*((inflate(case), ingest(case)) for _ in range(repeats)), strict=True)
    cpu = [run[0] for run in runs]
    facts, files = runs[-1][2].facts, runs[-1][2].manifest["files"]
    return {
        "case": case.case,
        "labelled": case.label is not None,
        "shape": facts["native_shape"],
        "spacing_mm": facts["native_spacing_mm"],
        "stored_shape": facts["shape"],
        "bytes_read": sum(member.size for member in (case.image, case.label) if member),
        "bytes_written": sum(file["size"] for file in files),
        "inflate_cpu_s": round(statistics.median(floors), 3),
        "ingest_cpu_s": round(statistics.median(cpu), 3),
        "ingest_wall_s": round(statistics.median(run[1] for run in runs), 3),
        "cpu_ratio": round(statistics.median(map(truediv, cpu, floors)), 2),
        "profile_cpu_s": _profile(case, statistics.median(floors), statistics.median(cpu), repeats),
        **_memory(folder, case),
    }


def _memory(folder: Path, case: CaseSource) -> Row:
    """In a fresh process; a case read as if it were finer holds less than itself."""
    if case.spacing_mm:
        return {}
    command = [sys.executable, str(Path(__file__).with_name("ingest.py")), "--memory", case.case]
    found: Row = json.loads(subprocess.check_output([*command, "--data", str(folder)]))
    return found


def _profile(case: CaseSource, inflated: float, whole: float, repeats: int) -> dict[str, float]:
    """CPU seconds that each step adds to those before it, which are run without it."""
    planes, slabs, survey, written = (
        _cpu(step, case, repeats) for step in (_planes, _slabs, _survey, _written)
    )
    steps = {
        "inflate": inflated,
        "planes": planes - inflated,
        "resample": slabs - planes,
        "fingerprint": survey - slabs,
        "compress and write": written - slabs,
        "digests and commit": whole - survey - (written - slabs),
    }
    return {name: round(seconds, 3) for name, seconds in steps.items()}


def _cpu(step: Callable[[CaseSource], Iterable[object]], case: CaseSource, repeats: int) -> float:
    found = []
    for _ in range(repeats):
        start = time.process_time()
        deque(step(case), maxlen=0)
        found.append(time.process_time() - start)
    return statistics.median(found)


def _planes(case: CaseSource) -> Iterator[object]:
    for scan in filter(None, open_scans(case)):
        yield from scan.slices()


def _survey(case: CaseSource) -> Iterator[object]:
    yield survey_case(case, CONFIG)


def _written(case: CaseSource) -> Iterator[None]:
    grid = plan_target(open_scans(case)[0].header, CONFIG).grid
    with tempfile.TemporaryDirectory(prefix="liverseg-ingest-") as folder:
        writer = CaseWriter(Path(folder), grid, labelled=case.label is not None)
        for slab in _slabs(case):
            writer.write_slab(*slab)
            yield


def _slabs(case: CaseSource) -> Iterator[Slab]:
    image, label = open_scans(case)
    return case_slabs(image, label, plan_target(image.header, CONFIG), CONFIG, LabelSurvey())


def _median(rows: list[Row], kind: str) -> Row:
    chosen = [row for row in rows if row["case"].startswith(kind)]
    keys = ("inflate_cpu_s", "ingest_cpu_s", "cpu_ratio")
    found = {key: round(statistics.median(row[key] for row in chosen), 3) for key in keys}
    return {"cases": len(chosen), **found, "goal_holds": found["cpu_ratio"] <= GOAL["cpu_ratio"]}
