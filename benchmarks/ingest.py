"""What ingest costs beside its floor, inflating the same bytes: CPU and wall time, memory, bytes written.

    python benchmarks/ingest.py [--data FOLDER] [--repeats N]

writes benchmarks/results/ingest.json. Phantoms of full size are made first, which takes minutes; `--data`
keeps them. Floor and ingest take turns in one process, after a small case has loaded every library; memory
is measured in a process of its own for each case.
"""

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from operator import truediv
from pathlib import Path

from isal import igzip
from machine import describe

from liverseg_core.artifact import Artifact
from liverseg_core.config import IngestConfig
from liverseg_core.ingest import ingest_case
from liverseg_core.phantom import PhantomSpec, write_phantom_tar
from liverseg_core.source import CaseSource, open_source

RESULT = Path(__file__).parent / "results" / "ingest.json"
REAL = Path(os.environ.get("LIVERSEG_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
LIDC = REAL / "lidc0314_lower" / "lidc0314_lower110_ct.nii.gz"
PHANTOMS = {
    "small": PhantomSpec(cases=1, unlabelled=0, size=(64, 64, 64)),
    "full": PhantomSpec(cases=3, unlabelled=0, size=(512, 512, 300)),
    "giant": PhantomSpec(cases=1, unlabelled=0, size=(512, 512, 987)),
}
PIECE = 1 << 20


def sources(folder: Path) -> Iterator[Path]:
    """Make what isn't there yet; the small one comes first."""
    for name, spec in PHANTOMS.items():
        path = folder / f"{name}.tar"
        if not path.exists():
            write_phantom_tar(path, spec, progress=lambda case: print(f"phantom {case}", file=sys.stderr))
        yield path
    if LIDC.exists():
        path = folder / "lidc"
        (path / "imagesTs").mkdir(parents=True, exist_ok=True)
        shutil.copy(LIDC, path / "imagesTs" / "lidc.nii.gz")
        listing = {"labels": {"1": "liver"}, "training": [], "test": ["imagesTs/lidc.nii.gz"]}
        (path / "dataset.json").write_text(json.dumps(listing))
        yield path


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
        artifact = ingest_case(case, IngestConfig(), Path(store))
        return time.process_time() - cpu, time.perf_counter() - wall, artifact


def peak_memory(path: Path, index: int) -> dict[str, int]:
    """Ingest one case in a fresh process: what it holds with everything imported, and at most."""
    command = [sys.executable, __file__, "--memory", str(path), str(index)]
    found: dict[str, int] = json.loads(subprocess.check_output(command))
    return found


def memory_of_one(path: Path, index: int) -> dict[str, int]:
    """Run inside that process."""
    case = open_source(str(path)).cases[index]
    baseline = _status_mb("VmRSS")
    ingest(case)
    return {"baseline_mb": baseline, "above_baseline_mb": _status_mb("VmHWM") - baseline}


def _status_mb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) // 1000


def measure(path: Path, index: int, repeats: int) -> dict[str, object]:
    """One case, floor and ingest in turns."""
    case = open_source(str(path)).cases[index]
    floors, runs = zip(*((inflate(case), ingest(case)) for _ in range(repeats)), strict=True)
    cpu = [run[0] for run in runs]
    artifact = runs[-1][2]
    members = [member for member in (case.image, case.label) if member]
    return {
        "case": f"{path.stem}/{case.case}",
        "labelled": case.label is not None,
        "shape": artifact.facts["native_shape"],
        "spacing_mm": artifact.facts["native_spacing_mm"],
        "stored_shape": artifact.facts["shape"],
        "bytes_read": sum(member.size for member in members),
        "bytes_written": sum(file["size"] for file in artifact.manifest["files"]),
        "inflate_cpu_s": round(statistics.median(floors), 3),
        "ingest_cpu_s": round(statistics.median(cpu), 3),
        "ingest_wall_s": round(statistics.median(run[1] for run in runs), 3),
        "cpu_ratio": round(statistics.median(map(truediv, cpu, floors)), 2),
        **peak_memory(path, index),
    }


def main() -> None:
    """Measure every case at 1 mm, linear, and write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="keep the phantoms here")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print(json.dumps(memory_of_one(Path(arguments.memory[0]), int(arguments.memory[1]))))
        return
    folder = arguments.data or Path(tempfile.mkdtemp(prefix="liverseg-data-"))
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    try:
        for path in sources(folder):
            cases = open_source(str(path)).cases
            if path.stem == "small":
                ingest(cases[0])
                continue
            for index in range(len(cases)):
                rows.append(measure(path, index, arguments.repeats))
                print(json.dumps(rows[-1]), file=sys.stderr)
    finally:
        if arguments.data is None:
            shutil.rmtree(folder)
    result = {"machine": describe(), "repeats": arguments.repeats, "cases": rows}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
