"""What one case costs a peer, measured in its own process: started by ingest_peers.py, once a case.

    python run_PEER.py FOLDER SMALL_IMAGE SMALL_LABEL IMAGE [LABEL]

works into FOLDER and prints one line of JSON. The small case is done first, twice: what the second costs is
what starting and ending costs a peer whatever the case, such as processes of its own.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

Work = Callable[[list[Path], Path], Iterator[str]]
"""Does a case, its scan and label, into a folder, and names each phase as it ends."""


class Cost(NamedTuple):
    """Seconds since some point."""

    cpu_s: float
    wall_s: float

    def since(self, before: "Cost") -> "Cost":
        """What came after `before`."""
        return Cost(round(self.cpu_s - before.cpu_s, 3), round(self.wall_s - before.wall_s, 3))


def now() -> Cost:
    """CPU and wall seconds of this process and the children it waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return Cost(sum(usage.ru_utime + usage.ru_stime for usage in usages), time.perf_counter())


def meter(work: Work, repeats: int = 1) -> None:
    """Do the small case twice, then the other, and print what each cost."""
    folder, files = Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
    small, case = files[:2], files[2:]
    imported = now()
    _phases(work, small, folder / "first")
    start = now()
    _phases(work, small, folder / "again")
    fixed = now().since(start)
    baseline_mb = status_mb("VmRSS")
    print(
        json.dumps(
            {
                "start_cpu_s": round(start.cpu_s, 3),
                "import_cpu_s": round(imported.cpu_s, 3),
                "fixed": fixed._asdict(),
                "runs": [_phases(work, case, folder / f"case{k}") for k in range(repeats)],
                "baseline_mb": baseline_mb,
                "peak_mb": _peak_mb(),
            }
        )
    )


def _phases(work: Work, files: list[Path], folder: Path) -> dict[str, Cost]:
    folder.mkdir()
    found, start = {}, now()
    before = start
    for name in work(files, folder):
        found[name] = now().since(before)
        before = now()
    return {**found, "all": now().since(start)}


def status_mb(field: str) -> int:
    """A size of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6)


def _peak_mb() -> int:
    """Of the largest process: two at once are not added."""
    # A child's ru_maxrss counts from its parent's memory, so this process is asked by VmHWM.
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(status_mb("VmHWM"), round(children * 1024 / 1e6))
