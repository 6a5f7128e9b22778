"""What finding a finished dataset costs: `ingest` on a store of N simulated cases, on disk and on S3.

    python benchmarks/resume.py [--cases 100000]

writes benchmarks/results/resume.json. The source is a tar of N labelled cases whose scans are a few
bytes of gzip: nothing is read of them but their ends. The store holds what a real ingest leaves of each case
that finding it could read: a folder with a manifest, and the index. Time is that of a whole process from its
start, with the tar's index kept from an earlier run.
"""

import argparse
import io
import json
import logging
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from isal import igzip
from machine import describe

from liverseg_core.artifacts.artifact import Facts, make_manifest
from liverseg_core.artifacts.case_index import remember
from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.artifacts.location import open_store
from liverseg_core.artifacts.produce import Store
from liverseg_core.artifacts.stages import INGEST
from liverseg_core.cases.case_record import case_recipe
from liverseg_core.config import IngestConfig, StorageConfig
from liverseg_core.phantom.dataset import PhantomSpec, write_phantom_tar
from liverseg_core.sources.source import CaseSource, open_source

RESULT = Path(__file__).parent / "results" / "resume.json"
MEASURED = """
import atexit, json, resource, sys
def report():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    lines = open("/proc/self/status").read().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    print(json.dumps({"cpu_s": round(usage.ru_utime + usage.ru_stime, 1), "peak_mb": peak // 1000}),
          file=sys.stderr)
atexit.register(report)
from flows.cli import main
main()
"""


def write_source(path: Path, cases: int) -> None:
    """A Decathlon tar of N labelled cases with next to nothing in them."""
    scan = igzip.compress(b"")
    names = [f"liver_{n}.nii.gz" for n in range(cases)]
    pairs = [{"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"} for name in names]
    listing = {"name": "Liver", "labels": {"1": "liver", "2": "cancer"}, "training": pairs, "test": []}
    with tarfile.open(path, "w") as tar:
        for member, data in [
            ("dataset.json", json.dumps(listing).encode()),
            *((f"{folder}/{name}", scan) for name in names for folder in ("imagesTr", "labelsTr")),
        ]:
            described = tarfile.TarInfo(f"Task03_Liver/{member}")
            described.size = len(data)
            tar.addfile(described, io.BytesIO(data))


def real_facts(folder: Path) -> Facts:
    """What a real ingest of a phantom case finds."""
    from liverseg_core.cases.ingest import ingest_case

    tar = folder / "phantom.tar"
    write_phantom_tar(tar, PhantomSpec(cases=1, unlabelled=0, size=(64, 64, 40)))
    (case,) = open_source(str(tar)).cases
    return ingest_case(case, IngestConfig(), LocalStore(folder / "phantom")).facts


def fill(store: Store, cases: tuple[CaseSource, ...], facts: Facts, folder: Path) -> None:
    """A folder with its manifest for each case, and the index."""
    empty = folder / "empty"
    empty.mkdir(exist_ok=True)
    known = {}
    for case in cases:
        recipe = case_recipe(case, IngestConfig())
        fingerprint = {**facts["fingerprint"], "content": recipe.key}
        known[recipe.key] = {**facts, "case": case.case, "fingerprint": fingerprint}
        manifest = json.dumps(make_manifest(recipe, empty, known[recipe.key], 0.0)).encode()
        name = f"{INGEST.folder}/{recipe.key}/manifest.json"
        if isinstance(store, LocalStore):  # without fsync, which would take half an hour
            path = store.root / name
            path.parent.mkdir(parents=True)
            path.write_bytes(manifest)
        else:
            store.write(name, manifest)
    remember(store, known)


def measure(source: Path, store: str, environment: dict[str, str]) -> dict[str, Any]:
    """`liverseg ingest` in a whole process, which finds everything stored and prints its table."""
    begun = time.perf_counter()
    command = [sys.executable, "-c", MEASURED, "ingest", str(source), "--store", store]
    ended = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    assert "0 new" in ended.stderr, ended.stderr
    found: dict[str, Any] = json.loads(ended.stderr.splitlines()[-1])
    return {**found, "wall_s": round(time.perf_counter() - begun, 1)}


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """A loopback mock of S3 with a bucket `data`; the environment of who uses it."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    login = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    environment = login | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    os.environ.update(environment)
    boto3.client("s3").create_bucket(Bucket="data")
    try:
        yield environment
    finally:
        server.stop()


def main() -> None:
    """Simulate, measure on disk with N cases and on S3 with a tenth, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--cases", type=int, default=100_000)
    count = parser.parse_args().cases
    rows = []
    with tempfile.TemporaryDirectory(prefix="liverseg-resume-") as name:
        folder = Path(name)
        os.environ["LIVERSEG_CACHE"] = str(folder / "cache")
        facts = real_facts(folder)
        for place, cases in (("disk", count), ("s3", count // 10)):
            source = folder / f"{place}.tar"
            write_source(source, cases)
            time.sleep(2.5)  # an index of what changed a moment ago is not kept
            opened = open_source(str(source)).cases
            if place == "disk":
                fill(LocalStore(folder / "store"), opened, facts, folder)
                rows.append({"store": place, "cases": cases, **measure(source, str(folder / "store"), {})})
            else:
                with s3_server() as environment:
                    fill(open_store("s3://data/store", StorageConfig()), opened, facts, folder)
                    rows.append(
                        {"store": place, "cases": cases, **measure(source, "s3://data/store", environment)}
                    )
            print(json.dumps(rows[-1]), file=sys.stderr)
    result = {"machine": describe(), "rows": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
