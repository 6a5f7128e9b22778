"""What all measures of a pair of labels cost liverseg: see measures.py for the files."""

import json
import sys
import time
from pathlib import Path

import numpy as np
from meter import status_mb

from liverseg_core.evaluation.measures import score_case


def main(folder: Path) -> None:
    """Score the pair once; a small one before it has everything imported."""
    prediction, reference = (np.load(folder / f"{name}.npy") for name in ("prediction", "reference"))
    x, y, z = json.loads((folder / "spacing_mm.json").read_text())
    score_case("small", prediction[::16, ::16, ::16], reference[::16, ::16, ::16], (x, y, z))
    resident_mb = status_mb("VmRSS")
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    score = score_case("pair", prediction, reference, (x, y, z))
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    print(
        json.dumps(
            {
                "cpu_s": round(cpu_s, 2),
                "wall_s": round(wall_s, 2),
                "resident_mb": resident_mb,
                "peak_mb": status_mb("VmHWM"),
                "record": score.record(),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
