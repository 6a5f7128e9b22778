"""Checkpoints that are whole or not there: a checksum in front, one rename, the last two and the best."""

import hashlib
import io
import pickle
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from liverseg_core.durable import PART, write_atomically
from liverseg_core.errors import LiversegError

KEEP = 2
BEST = "best.pt"
_DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Checkpoint:
    """What training was after `step` steps.

    Args:
        step: Steps done.
        data_key: The data it was trained on.
        state: Tensors and plain values only, so that nothing has to be unpickled.
    """

    step: int
    data_key: str
    state: Mapping[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint, then drop all but the last `KEEP` up to its step.

    Later ones are dropped too: only damaged ones can be there when training passes through this step again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for part in folder.glob(f".*{PART}"):  # of a process that was killed while it saved
        part.unlink()
    path = folder / f"step-{checkpoint.step:09d}.pt"
    _write(path, checkpoint)
    kept = [old for old in _stored(folder) if old.name <= path.name][-KEEP:]
    for old in _stored(folder):
        if old not in kept:
            old.unlink()
    return path


def save_best(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the best checkpoint over the one that was the best before."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / BEST, checkpoint)


def load_best(folder: Path) -> Checkpoint:
    """Read the best checkpoint.

    Raises:
        LiversegError: LS533 when it is missing or damaged.
    """
    path = folder / BEST
    checkpoint = _read(path) if path.exists() else None
    if checkpoint is None:
        raise LiversegError(
            "LS533",
            f"{path}, the best checkpoint, is {'damaged' if path.exists() else 'missing'}",
            "the file as training wrote it",
            f"Delete the folder {folder} to train from the start, or set train.choose to last",
        )
    return checkpoint


def load_latest(folder: Path, data_key: str, warn: Callable[[str], None]) -> Checkpoint | None:
    """Read the latest undamaged checkpoint; None where there is none at all.

    Args:
        folder: Where `save_checkpoint` wrote.
        data_key: The data that training is about to go on with.
        warn: Told of every damaged checkpoint that is passed over.

    Raises:
        LiversegError: LS531 when all of them are damaged; LS532 when it was trained on other data.
    """
    stored = _stored(folder)
    for path in reversed(stored):
        checkpoint = _read(path)
        if checkpoint is None:
            warn(f"{path} is damaged; going back to the checkpoint before it")
            continue
        if checkpoint.data_key != data_key:
            raise LiversegError(
                "LS532",
                f"{path} was trained on data {checkpoint.data_key}",
                f"a checkpoint of data {data_key}",
                f"Delete the folder {folder} to train from the start",
            )
        return checkpoint
    if stored:
        raise LiversegError(
            "LS531",
            f"every checkpoint in {folder} is damaged",
            "at least one whole checkpoint",
            "Delete the folder to train from the start, and check the disk",
        )
    return None


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every global random generator, of GPUs this one's, as tensors and plain values."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
        "python": random.getstate(),
    }


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Set every global random generator to what `random_state` saw.

    Args:
        state: What `random_state` returned; in older checkpoints with the states of all GPUs of that machine.
        device: Where training goes on. A GPU that nothing was saved of keeps the state that the seed gave it.
    """
    torch.set_rng_state(state["torch"])
    if state["cuda"] and device.type == "cuda":
        last = len(state["cuda"]) - 1
        torch.cuda.set_rng_state(state["cuda"][min(device.index or 0, last)], device)
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    random.setstate(state["python"])


def _write(path: Path, checkpoint: Checkpoint) -> None:
    buffer = io.BytesIO()
    torch.save((checkpoint.step, checkpoint.data_key, dict(checkpoint.state)), buffer)
    payload = buffer.getvalue()
    write_atomically(path, hashlib.sha256(payload).digest() + payload)


def _stored(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"))


def _read(path: Path) -> Checkpoint | None:
    content = path.read_bytes()
    digest, payload = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        return None
    try:
        return Checkpoint(*torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True))
    except (pickle.UnpicklingError, RuntimeError, TypeError):  # the checksum fits, but we never wrote this
        return None
