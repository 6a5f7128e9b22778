"""Our training step under the same meter, then the whole loop on stored cases.

    python step_liverseg.py REQUEST

REQUEST is JSON: `train` with a recipe's section, `steps`, `device`, `compile`, `channels_last`, `cases` with
folders of stored cases, and `loop_steps`; with `mapped`, arrays above 32 MB are given back each time. Prints
one line of JSON.
"""

import ctypes
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from step_meter import measure

from liverseg_core import allocator
from liverseg_core.allocator import memory_kept
from liverseg_core.config import ComputeConfig, IngestConfig, TrainConfig
from liverseg_core.training import train as loop
from liverseg_core.training.distributed_training import World
from liverseg_core.training.interruption import repeatable
from liverseg_core.training.losses import build_loss
from liverseg_core.training.train_job import TrainJob
from liverseg_core.training.training_state import begin


def main(request: dict[str, Any]) -> None:
    """Print what a step costs, and what the loop waits for."""
    config = TrainConfig.model_validate(request["train"])
    compute = ComputeConfig(
        device=request["device"], compile=request["compile"], channels_last=request["channels_last"]
    )
    cases = [Path(case) for case in request["cases"]]
    job = TrainJob(cases, config, IngestConfig(), compute, "benchmark")
    device = torch.device(request["device"])
    found = one_step(job, device, request["steps"], request.get("mapped", False))
    if cases:
        found |= whole_loop(job, request["loop_steps"])
    print(json.dumps(found))


def one_step(job: TrainJob, device: torch.device, steps: int, mapped: bool) -> dict[str, float]:
    """A step on a batch that is there already."""
    config = job.config
    state = begin(job, Path("none"), device, first=True)
    run = loop._Run(job, Path(), lambda *_: None, World(device), [])
    forward: Any = torch.compile(state.network) if job.compute.compile else state.network
    loss_of = build_loss(config)
    share = config.batch_size // config.accumulate
    label = torch.randint(0, 3, (share, *config.patch_size), dtype=torch.uint8)
    batches = itertools.repeat((torch.randn(share, 1, *config.patch_size), label))
    with repeatable(device.type == "cpu"), memory_kept():
        if mapped:
            ctypes.CDLL(None).mallopt(allocator._MMAP_THRESHOLD, 2**25)
            allocator._waiting.clear()
        return measure(lambda: loop._step(run, state, forward, loss_of, batches), steps, device)


def whole_loop(job: TrainJob, steps: int) -> dict[str, float]:
    """Patches a second of the second half of a short training, and its share of time waiting for patches."""
    logged: list[dict[str, float]] = []
    lap = steps // 2
    config = job.config.model_copy(
        update={"steps": steps, "log_every": lap, "checkpoint_every": 10 * steps, "validate_every": 0}
    )
    whole = TrainJob(job.cases, config, job.ingest, job.compute, job.data_key)
    with tempfile.TemporaryDirectory() as folder:
        loop.train(whole, Path(folder), lambda _step, values: logged.append(dict(values)))
    last = logged[-1]
    seconds = lap * config.batch_size / last["patches_per_s"]
    return {
        "patches_per_s": round(last["patches_per_s"], 3),
        "waiting_share": round(last["data_wait_s"] / seconds, 4),
    }


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
