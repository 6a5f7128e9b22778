"""How ingest scales with Dask workers, from a local tar and from an S3 server on loopback."""

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from ingest_data import SMALL, bytes_below, full_size, pack, prepared

from flows.runners import DaskRunner, open_runner
from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.cases.ingest import ingest_case
from liverseg_core.config import ComputeConfig, IngestConfig, RemoteConfig
from liverseg_core.environment import environment
from liverseg_core.sources.source import CaseSource, open_source

Row = dict[str, Any]
WORKERS = (1, 2, 4)
COPIES, ROUNDS = 2, 3
"""Of each case, under names of their own; and how often all are ingested, of which the quickest counts."""
START_S = 60


def workers(folder: Path) -> Row:
    """Wall time, throughput and efficiency for each number of workers; their start is not counted."""
    cases = prepared(folder)
    tar = folder / "full.tar"
    pack(folder, [case.case for case in full_size(cases)], tar)
    rows = []
    with tempfile.TemporaryDirectory() as cache, environment({"LIVERSEG_CACHE": cache}):
        for count in WORKERS:
            rows.append({"source": "local tar", **_measure(open_source(str(tar)).cases, cases[SMALL], count)})
        with _s3_server(tar) as (options, server):
            remote = open_source("s3://data/full.tar", options=options)
            for count in WORKERS:
                before = _cpu_s(server)
                row = {"source": "S3 on loopback", **_measure(remote.cases, cases[SMALL], count)}
                rows.append({**row, "server_cpu_s": round((_cpu_s(server) - before) / ROUNDS, 2)})
    tar.unlink()
    return {"cores": os.cpu_count(), "rows": [_against_one(row, rows) for row in rows]}


def _measure(cases: Sequence[CaseSource], small: CaseSource, count: int) -> Row:
    """The quickest of some rounds: other work on the machine only makes them longer."""
    print(f"{count} workers", file=sys.stderr)
    items = [replace(case, case=f"{case.case}-{k}") for k in range(COPIES) for case in cases]
    warm = [replace(small, case=f"warm-{k}") for k in range(4 * count)]
    with open_runner(ComputeConfig(workers=count)) as runner:
        assert isinstance(runner, DaskRunner)
        _round(runner, warm)
        rounds = [_round(runner, items) for _ in range(ROUNDS)]
    best = min(rounds, key=itemgetter("wall_s"))
    read = sum(member.size for case in items for member in (case.image, case.label) if member)
    return {
        "workers": count,
        "cases": len(items),
        "rounds_wall_s": [found["wall_s"] for found in rounds],
        **best,
        "cpu_s_per_case": round(best["cpu_s"] / len(items), 3),
        "cases_per_min": round(60 * len(items) / best["wall_s"], 1),
        "read_mb_per_s": round(read / best["wall_s"] / 1e6, 1),
        "bytes_read": read,
    }


def _round(runner: DaskRunner, items: Sequence[CaseSource]) -> Row:
    """Ingest the cases into a store of their own."""
    with tempfile.TemporaryDirectory(prefix="liverseg-store-") as store:
        work = functools.partial(ingest_case, config=IngestConfig(), store=LocalStore(Path(store)))
        cpu, wall = _workers_cpu_s(runner), time.perf_counter()
        failed = [outcome.error for outcome in runner.map(work, items) if outcome.error]
        cpu, wall = _workers_cpu_s(runner) - cpu, time.perf_counter() - wall
        assert not failed, failed[0]
        return {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2), "bytes_written": bytes_below(Path(store))}


def _workers_cpu_s(runner: DaskRunner) -> float:
    return float(sum(runner.client.run(time.process_time).values()))


def _against_one(row: Row, rows: list[Row]) -> Row:
    """Efficiency against one worker: by the clock, of each core that there is; and of the CPU time alone.

    Other work on the machine spoils the first and hardly the second.
    """
    (one,) = (other for other in rows if other["source"] == row["source"] and other["workers"] == 1)
    speedup = one["wall_s"] / row["wall_s"]
    cores = min(row["workers"], os.cpu_count() or 1)
    cpu = one["cpu_s_per_case"] / row["cpu_s_per_case"]
    found = {"speedup": speedup, "efficiency_per_core": speedup / cores, "cpu_efficiency": cpu}
    return {**row, **{name: round(value, 2) for name, value in found.items()}}


@contextlib.contextmanager
def _s3_server(tar: Path) -> Iterator[tuple[RemoteConfig, psutil.Process]]:
    """A protocol mock of S3 in a process of its own, which holds the tar in memory."""
    import boto3  # type: ignore[import-untyped]

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    server = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    login = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    try:
        _wait_for(port)
        url = f"http://127.0.0.1:{port}"
        with environment(login):
            client = boto3.client("s3", endpoint_url=url)
            client.create_bucket(Bucket="data")
            client.upload_file(str(tar), "data", "full.tar")
            yield RemoteConfig(endpoint=url, allowed_hosts=("127.0.0.1",)), server
    finally:
        server.send_signal(signal.SIGINT)
        with contextlib.suppress(psutil.TimeoutExpired):
            server.wait(10)
        if server.is_running():
            server.kill()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
