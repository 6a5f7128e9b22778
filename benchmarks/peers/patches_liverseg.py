"""Ours and torchio's queue under the same clock as nnU-Net's loader; started by ../patches.py.

    python patches_liverseg.py STORE SIZE SETTINGS PATCHES WORKERS WAY

SETTINGS is a JSON of `train.augment`. WAY is `stream`; `queue`, torchio's; `read`, what is left for the
loader when the device augments; or `soak`, the stream with handles and memory told a few times on the way.
"""

import gc
import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from liverseg_core.cases.store import open_case
from liverseg_core.config import ComputeConfig, TrainConfig
from liverseg_core.training.patch_dataset import PatchDataset
from liverseg_core.training.patches import patch_stream

BATCH = 2
MIXTURE = (0, 0.25, 0.25, 0, 0.5)
"""As nnU-Net's: of two patches one around liver or tumour, one anywhere."""


def batches(dataset: PatchDataset, count: int, workers: int, way: str) -> Iterator[Any]:
    """So many batches, or what is read for them."""
    if way == "read":
        return ([dataset.read(step * BATCH + i) for i in range(BATCH)] for step in range(count))
    return iter(patch_stream(dataset, range(count), BATCH, ComputeConfig(loader_workers=workers)))


def held() -> dict[str, int]:
    """Handles and memory of this process and of the loader's."""
    gc.collect()
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return {
        "handles": sum(process.num_fds() for process in processes),
        "mb": sum(process.memory_full_info().uss for process in processes) // 10**6,
    }


def main() -> None:
    """Print patches, CPU and wall seconds as JSON."""
    cases = [open_case(path) for path in sorted(Path(sys.argv[1]).glob("cases/*"))]
    size, augment, way = (int(sys.argv[2]),) * 3, json.loads(sys.argv[3]), sys.argv[6]
    patches, workers = int(sys.argv[4]), int(sys.argv[5])
    torch.set_num_threads(1)
    mixture = (0.2, 0.3, 0.5) if way == "queue" else MIXTURE
    loader = "queue" if way == "queue" else "stream"
    config = TrainConfig.model_validate(
        {"patch_size": size, "augment": augment, "class_mixture": mixture, "loader": loader, "jitter": 0}
    )
    dataset, first = PatchDataset(cases, config), 10 if way == "queue" else max(8, 8 * workers)
    stream = batches(dataset, first + patches // BATCH, workers, way)
    for _ in range(first):  # what the workers made before the clock started, and the queue's first volumes
        next(stream)
    told, usage, wall = [], resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for done, _ in enumerate(stream):
        if way == "soak" and done % 500 == 499:
            told.append({"patches": (done + 1) * BATCH, **held()})
    wall, used = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_SELF)
    cpu = used.ru_utime + used.ru_stime - usage.ru_utime - usage.ru_stime
    print(json.dumps({"patches": patches, "cpu_s": cpu, "wall_s": wall, "told": told}))


if __name__ == "__main__":
    main()
