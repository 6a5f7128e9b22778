"""On paper: how long the Decathlon's liver tar takes, from what was measured here, with its arithmetic.

Nothing in this file measures. What it takes from the other parts, and what it assumes, is in its result.
"""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Archive:
    """A dataset as far as it is known without its bytes."""

    name: str
    bytes: int
    labelled: int
    unlabelled: int
    labelled_slices: int

    @property
    def slices(self) -> float:
        """Of all cases, where only the labelled ones' are known."""
        return self.labelled_slices * (1 + self.unlabelled / self.labelled)


TAR = Archive("Task03_Liver.tar", 28_925_891_584, 131, 70, 58_638)
LONGEST_SLICES = 987
CORES = (1, 16, 64)
READ_MB_PER_S, WRITE_MB_PER_S = 1250.0, 1000.0
ASSUMPTIONS = (
    f"bounds: {READ_MB_PER_S:.0f} MB/s to read (10 Gbit/s), {WRITE_MB_PER_S:.0f} MB/s to write",
    "an unlabelled case has as many slices as a labelled one, and a slice costs what it does here",
    "efficiency of a core at 16 and 64 is the one measured here with two workers on two cores",
    "whichever core is free takes the next case, in any order: at worst the longest comes last",
)


def estimate(results: Row) -> Row:
    """Seconds on each number of cores, ours and the peers', from the results of the other parts."""
    full = [row for row in results["floor"]["cases"] if row["case"].startswith("full")]
    efficiency = _efficiency(results["workers"]["rows"])
    per_mb = _per(full, "ingest_cpu_s", lambda row: row["bytes_read"] / 1e6)
    per_slice = _per(full, "ingest_cpu_s", lambda row: row["shape"][2])
    by_mb, by_slice = per_mb * TAR.bytes / 1e6, per_slice * TAR.slices
    cpu_s = max(by_mb, by_slice)
    written = _per(full, "bytes_written", lambda row: row["shape"][2]) * TAR.slices
    bounds = {"read": TAR.bytes / READ_MB_PER_S / 1e6, "write": written / WRITE_MB_PER_S / 1e6}
    longest_s = per_slice * LONGEST_SLICES
    return {
        "of": asdict(TAR),
        "assumptions": ASSUMPTIONS,
        "arithmetic": [
            f"{TAR.slices:.0f} slices = {TAR.labelled_slices} × (1 + {TAR.unlabelled} / {TAR.labelled})",
            f"by bytes: {per_mb:.5f} CPU-s/MB × {TAR.bytes / 1e6:.0f} MB = {by_mb:.0f} CPU-s",
            f"by slices: {per_slice:.5f} CPU-s × {TAR.slices:.0f} = {by_slice:.0f} CPU-s; the larger counts",
            f"longest case: {per_slice:.5f} × {LONGEST_SLICES} = {longest_s:.1f} s",
            f"reading alone: {bounds['read']:.0f} s; writing {written / 1e9:.1f} GB: {bounds['write']:.0f} s",
            f"n cores: at most CPU-s / (n × {efficiency}) + longest × (1 − 1/n), at least reading or writing",
        ],
        "rows": [
            {"tool": "ours", "cores": n, **wall_s(cpu_s, n, efficiency if n > 1 else 1.0, longest_s, bounds)}
            for n in CORES
        ]
        + list(_peers(results["peers"])),
    }


def wall_s(cpu_s: float, cores: int, efficiency: float, longest_s: float, bounds: dict[str, float]) -> Row:
    """Seconds until the last core is done, and what decides it.

    Args:
        cpu_s: All the work.
        cores: How many share it.
        efficiency: Of a core, against one alone.
        longest_s: The longest case, which one core does alone.
        bounds: Seconds below which it can't be, by their names.
    """
    computing = cpu_s / (cores * efficiency) + longest_s * (1 - 1 / cores)
    decides, seconds = max({"CPU": computing, **bounds}.items(), key=lambda item: item[1])
    return {"wall_s": round(seconds, 1), "decided_by": decides}


def _peers(peers: Row) -> Iterable[Row]:
    """What each peer would take if its cores never waited for anything: in its favour."""
    for peer in peers["full_size"]:
        chosen = [row for row in peers["cases"] if row["peer"] == peer and row["case"].startswith("full")]
        per_slice = _per(chosen, "cpu_s", lambda row: int(row["case"].rpartition("-")[2]))
        for cores in CORES:
            seconds = round(per_slice * TAR.slices / cores, 1)
            yield {"tool": peer, "cores": cores, "wall_s": seconds, "decided_by": "CPU"}


def _per(rows: list[Row], key: str, unit: Callable[[Row], float]) -> float:
    return float(statistics.median(row[key] / unit(row) for row in rows))


def _efficiency(rows: list[Row]) -> float:
    """Measured from the local tar with two workers; never more than one."""
    (found,) = (row for row in rows if row["source"] == "local tar" and row["workers"] == 2)
    return min(1.0, float(found["efficiency_per_core"]))
