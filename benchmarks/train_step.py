"""What a training step costs, recipe by recipe, against nnU-Net's on the same network, patch and batch.

    python benchmarks/train_step.py [--steps N] [--peers FOLDER] [--full | --memory]

writes benchmarks/results/train_step.json. Without a GPU: one core, networks and patches of a size for that,
fp32. With one: the recipes' own networks, patches and precision. With --full, without one: networks and
patches of full size in fp32, since bf16 takes fifty times as long on CPUs without AVX-512. nnU-Net is
installed into an environment of its own, which is handed our networks' files: they need torch alone.
Each side has memory as its own training has it: ours keeps what a step frees. --memory compares that, in
turns and on one core, with arrays above 32 MB given back each time, as glibc does unless it may map none.
"""

import argparse
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from machine import describe
from peers_environment import python_of, run_in
from torch.utils.flop_counter import FlopCounterMode

from flows.settings import load_settings
from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.cases.ingest import ingest_case
from liverseg_core.config import IngestConfig, TrainConfig
from liverseg_core.models.networks import build_network, network_class
from liverseg_core.phantom.dataset import PhantomSpec, write_phantom_tar
from liverseg_core.sources.source import open_source

RESULT = Path(__file__).parent / "results" / "train_step.json"
SMALL = {
    "unet": ["train.patch_size=[48, 48, 48]"],
    "ahnet": ["train.patch_size=[64, 32, 32]", "train.network.psp_blocks=2"],
    "resenc": ["train.patch_size=[48, 48, 48]", "train.network.channels=[16, 32, 64, 128, 160]",
               "train.network.blocks=null", "train.precision=fp32"],
    "phantom": [],
}  # fmt: skip
NNUNET = {
    "loss": "dice_ce", "optimiser": "sgd", "momentum": 0.99, "weight_decay": 3e-5, "gradient_clip": 12.0,
    "ema": None,
}  # fmt: skip
"""What its trainer does in a step, for a comparison of the same work."""
LARGE: dict[str, list[str]] = {
    "phantom": [],
    "unet": [],
    "ahnet": [],
    "resenc": ["train.patch_size=[96, 96, 96]", "train.network.channels=[16, 32, 64, 128]",
               "train.network.blocks=null", "train.precision=fp32"],
}  # fmt: skip
"""Of a size for a CPU, and with arrays above 32 MB where the recipe has any."""
LOOP_STEPS = 6
FITS_SHARE = 0.7
"""What --full may take of the memory that is free, where there is no GPU."""


def main() -> None:
    """Measure each recipe, then nnU-Net on its network."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--peers", type=Path, default=Path("~/.cache/liverseg/peers").expanduser())
    parser.add_argument("--full", action="store_true", help="full size without a GPU, where it fits; no peer")
    parser.add_argument("--compile", action="store_true", help="torch.compile on both sides, on a GPU")
    parser.add_argument(
        "--memory", action="store_true", help="with freed memory kept and given back, no peer"
    )
    options = parser.parse_args()
    if options.memory:
        compare_memory(options.steps)
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    alone = options.full and device == "cpu"
    peak = matrix_flops(device)
    recipes: dict[str, Any] = {}
    machine = describe() | device_of(device) | {"matrix_gflops": round(peak / 1e9)}
    with tempfile.TemporaryDirectory(prefix="liverseg-step-") as folder:
        cases = [] if alone else phantom_cases(Path(folder))
        for name, smaller in SMALL.items():
            own = ["train.precision=fp32"] if alone else []
            settings = load_settings(name, own if alone or device == "cuda" else smaller, {})
            recipe = settings.train
            entry = size_of(recipe)
            recipes[name] = entry
            free_mb = FITS_SHARE * psutil.virtual_memory().available / 1e6
            if alone and entry["autograd_mb"] + 4 * entry["weights_mb"] > free_mb:
                entry["not_run"] = f"would take more than {free_mb:.0f} MB, of what this machine has free"
                continue
            compute = {"compile": options.compile, "channels_last": settings.compute.channels_last}
            request = {"device": device, "steps": options.steps, **compute}
            entry["ours"] = ours(recipe, request, cases, Path(folder))
            clock = "step_cpu_ms" if device == "cpu" else "step_ms"
            reached = entry["gflop"] * 1e12 / entry["ours"][clock]
            entry["share_of_matrix_speed"] = round(reached / peak, 3)
            if not alone:
                alike = recipe.model_copy(update=NNUNET)
                entry["ours_as_nnunet"] = ours(alike, request, [], Path(folder))
                entry["nnunet"] = nnunet(recipe, request, options.peers, Path(folder))
                entry["ours_over_nnunet"] = round(entry["ours_as_nnunet"][clock] / entry["nnunet"][clock], 3)
            print(name, json.dumps(entry), file=sys.stderr)
    path = RESULT.with_name("train_step_full.json") if alone else RESULT
    text = json.dumps({"machine": machine, "recipes": recipes}, indent=1)
    path.write_text(text + "\n")
    print(text)


def compare_memory(steps: int) -> None:
    """Our steps with large arrays given back and with them kept, in turns: the better of two runs of each."""
    recipes: dict[str, Any] = {}
    machine = describe() | device_of("cpu")
    for name, changes in LARGE.items():
        settings = load_settings(name, changes, {})
        channels_last = settings.compute.channels_last
        request = {"device": "cpu", "steps": steps, "compile": False, "channels_last": channels_last}
        runs: dict[str, list[dict[str, float]]] = {"mapped": [], "kept": []}
        with tempfile.TemporaryDirectory(prefix="liverseg-step-") as folder:
            for way in ("mapped", "kept", "kept", "mapped"):
                told = request | {"mapped": way == "mapped"}
                runs[way].append(ours(settings.train, told, [], Path(folder)))
        best = {
            way: {k: (max if k == "peak_mb" else min)(run[k] for run in both) for k in both[0]}
            for way, both in runs.items()
        }
        shares = {k: round(best["kept"][k] / value, 3) for k, value in best["mapped"].items()}
        recipes[name] = size_of(settings.train) | best | {"kept_over_mapped": shares}
        print(name, json.dumps(recipes[name]), file=sys.stderr)
    text = json.dumps({"machine": machine, "recipes": recipes}, indent=1)
    RESULT.with_name("train_step_memory.json").write_text(text + "\n")
    print(text)


def ours(recipe: TrainConfig, request: dict[str, Any], cases: list[Path], folder: Path) -> dict[str, float]:
    """Our step and loop, in a process of their own."""
    told = {"train": recipe.canonical(), "cases": [str(case) for case in cases], "loop_steps": 2 * LOOP_STEPS}
    return _run(Path(sys.executable), "step_liverseg.py", request | told, folder)


def nnunet(recipe: TrainConfig, request: dict[str, Any], peers: Path, folder: Path) -> dict[str, float]:
    """nnU-Net's step on the same network."""
    kind, arguments = network_class(recipe.network)
    told = {
        "file": inspect.getfile(kind),
        "name": kind.__name__,
        "arguments": arguments,
        "patch_size": recipe.patch_size,
        "batch_size": recipe.batch_size,
    }
    return _run(python_of("nnunet", peers), "step_nnunet.py", request | told, folder)


def _run(python: Path, script: str, request: dict[str, Any], folder: Path) -> dict[str, float]:
    try:
        printed = run_in(python, script, [json.dumps(request)], folder)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{script}: {error.stderr}")
    cost: dict[str, float] = json.loads(printed)
    return cost


def phantom_cases(folder: Path) -> list[Path]:
    """Two stored cases, larger than any patch here."""
    tar = folder / "phantom.tar"
    write_phantom_tar(tar, PhantomSpec(cases=2, unlabelled=0, size=(160, 160, 112)))
    config = IngestConfig(spacing_mm=(2, 2, 2) if not torch.cuda.is_available() else (1, 1, 1))
    return [ingest_case(case, config, LocalStore(folder)).path for case in open_source(str(tar)).cases]


def matrix_flops(device: str) -> float:
    """Operations a second of a large matrix product: fp32 on one core, bf16 on a GPU."""
    size, kind = (8192, torch.bfloat16) if device == "cuda" else (1536, torch.float32)
    a, best = torch.randn(size, size, device=device, dtype=kind), 0.0
    clock = time.perf_counter if device == "cuda" else time.process_time
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(5):
        began = clock()
        (a @ a).sum().item()
        best = max(best, 2 * size**3 / (clock() - began))
    torch.set_num_threads(threads)
    return best


def device_of(device: str) -> dict[str, object]:
    """What trained, and with what."""
    by: dict[str, object] = {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {"threads": 1}
    return by | {"torch": torch.__version__, "load": round(os.getloadavg()[0], 1)}


def size_of(recipe: TrainConfig) -> dict[str, Any]:
    """What a step of a recipe amounts to, without doing it."""
    kept = 0

    def note(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    share = recipe.batch_size // recipe.accumulate
    counter = FlopCounterMode(display=False)
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.precision, torch.float32)
    with torch.device("meta"):
        network = build_network(recipe.network).to(kind)  # autocast keeps activations in its type
        with counter, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            outputs = network(torch.empty(share, 1, *recipe.patch_size, dtype=kind))
            levels = outputs if isinstance(outputs, list) else [outputs]
            torch.autograd.backward([logits.sum() for logits in levels])
    weights = sum(p.numel() for p in network.parameters())
    return {
        "network": recipe.network.name,
        "patch_size": list(recipe.patch_size),
        "batch_size": recipe.batch_size,
        "precision": recipe.precision,
        "weights_mb": round(weights * 4 / 1e6),
        "autograd_mb": round(kept / 1e6),
        "gflop": round(counter.get_total_flops() * recipe.accumulate / 1e9, 1),
    }


if __name__ == "__main__":
    main()
