"""What ingest costs, and what the same work costs elsewhere.

    python benchmarks/ingest.py [--parts floor,peers,workers,error,estimate] [--data FOLDER] [--peers FOLDER]

floor     CPU, memory and bytes of every case beside the bare inflation of the same bytes
peers     the same cases through torchio, MONAI and nnU-Net, each in an environment of its own
workers   1, 2 and 4 Dask workers, from a local tar and from an S3 server on loopback
error     how far the interpolation is from a volume that is known everywhere, beside the peers'
estimate  the Decathlon's liver tar on 1, 16 and 64 cores, on paper, from the other parts' results

writes benchmarks/results/ingest.json; the parts that are not run keep the results they have. Phantoms of full
size are made first, which takes minutes; `--data` keeps them. LIVERSEG_REAL_DATA names the folder that holds
`lidc0314_lower`, a real scan; without it that row is left out.
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ingest_error import error
from ingest_estimate import estimate
from ingest_floor import floor, memory_of
from ingest_peers import peers
from ingest_tables import show
from ingest_workers import workers
from machine import describe

RESULT = Path(__file__).parent / "results" / "ingest.json"
PARTS = ("floor", "peers", "workers", "error", "estimate")
ENVIRONMENTS = Path.home() / ".cache" / "liverseg" / "peers"


def main() -> None:
    """Measure the chosen parts, write each as soon as it is done, and print them."""
    arguments = _arguments()
    folder = arguments.data or Path(tempfile.mkdtemp(prefix="liverseg-data-"))
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.memory:
        print(json.dumps(memory_of(folder, arguments.memory)))
        return
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    try:
        for part in arguments.parts:
            load = os.getloadavg()[0]
            found = _measure(part, folder, arguments, results)
            load = round(max(load, os.getloadavg()[0]), 1)
            results[part] = {"machine": describe(), "load": load, **found}
            kept = {name: results[name] for name in PARTS if name in results}
            RESULT.parent.mkdir(exist_ok=True)
            RESULT.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    finally:
        if arguments.data is None:
            shutil.rmtree(folder)
    show(results, arguments.parts)


def _measure(
    part: str, folder: Path, arguments: argparse.Namespace, results: dict[str, Any]
) -> dict[str, Any]:
    if part == "floor":
        return floor(folder, arguments.repeats)
    if part == "peers":
        return peers(folder, arguments.peers.absolute())
    if part == "workers":
        return workers(folder)
    if part == "error":
        return error(arguments.peers.absolute())
    return estimate(results)


def _arguments() -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, usage="%(prog)s [options]")
    parser.add_argument("--parts", type=_parts, default=PARTS, help="which, comma-separated; default: all")
    parser.add_argument("--data", type=Path, help="keep the phantoms here")
    parser.add_argument(
        "--peers", type=Path, default=ENVIRONMENTS, help=f"the peers' environments; default: {ENVIRONMENTS}"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="of floor and ingest, in turns; the median counts"
    )
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    return parser.parse_args()


def _parts(text: str) -> tuple[str, ...]:
    unknown = set(text.split(",")) - set(PARTS)
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}"
        )
    return tuple(part for part in PARTS if part in text.split(","))


if __name__ == "__main__":
    main()
