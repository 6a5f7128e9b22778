"""Checkpoints are whole or passed over aloud; nothing in them is unpickled."""

import hashlib
import io
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from liverseg_core.errors import LiversegError
from liverseg_core.training.checkpoint import (
    BEST,
    Checkpoint,
    load_best,
    load_latest,
    random_state,
    restore_random_state,
    save_best,
    save_checkpoint,
)

CPU = torch.device("cpu")


def write(folder: Path, *steps: int) -> list[Path]:
    return [save_checkpoint(folder, Checkpoint(s, "data", {"weight": torch.full((3,), s)})) for s in steps]


def refuse(message: str) -> None:
    raise AssertionError(message)


def test_latest_comes_back(tmp_path: Path) -> None:
    write(tmp_path, 10, 20)
    found = load_latest(tmp_path, "data", refuse)
    assert found is not None
    assert found.step == 20
    assert torch.equal(found.state["weight"], torch.full((3,), 20))


def test_no_folder_is_a_fresh_start(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "none", "data", refuse) is None


def test_last_two_are_kept(tmp_path: Path) -> None:
    write(tmp_path, 10, 20, 30, 5000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000030.pt", "step-000005000.pt"]


@pytest.mark.parametrize("attempt", range(20))
def test_damaged_latest_falls_back_and_says_so(tmp_path: Path, attempt: int) -> None:
    """A bit flipped, bytes lost, zeros written or bytes added, anywhere."""
    _, latest = write(tmp_path, 10, 20)
    content, rng = bytearray(latest.read_bytes()), random.Random(attempt)
    at = rng.randrange(len(content))
    match attempt % 4:
        case 0:
            content[at] ^= 1 << rng.randrange(8)
        case 1:
            del content[at if attempt > 1 else 0 :]
        case 2:
            content[at : at + 4096] = bytes(len(content[at : at + 4096]))
            content[at] = 1  # also where there were zeros before
        case 3:
            content[at:at] = b"more"
    assert bytes(content) != latest.read_bytes()
    latest.write_bytes(content)
    warnings: list[str] = []
    found = load_latest(tmp_path, "data", warnings.append)
    assert found is not None
    assert found.step == 10
    assert len(warnings) == 1
    assert latest.name in warnings[0]


def test_best_is_kept_beside_the_last_two(tmp_path: Path) -> None:
    save_best(tmp_path, Checkpoint(10, "data", {"weights": torch.ones(2)}))
    write(tmp_path, 10, 20, 30)
    found = load_latest(tmp_path, "data", refuse)
    assert found is not None
    assert found.step == 30
    assert load_best(tmp_path).step == 10
    assert len([*tmp_path.iterdir()]) == 3


@pytest.mark.parametrize("trouble", ["missing", "damaged"])
def test_best_that_cannot_be_read_is_told(tmp_path: Path, trouble: str) -> None:
    if trouble == "damaged":
        (tmp_path / BEST).write_bytes(b"x" * 100)
    with pytest.raises(LiversegError, match=f"LS533: .*best checkpoint, is {trouble}"):
        load_best(tmp_path)


def test_all_damaged_is_never_a_fresh_start(tmp_path: Path) -> None:
    for path in write(tmp_path, 10, 20):
        path.write_bytes(b"x")
    with pytest.raises(LiversegError, match="LS531"):
        load_latest(tmp_path, "data", lambda _: None)


def test_other_data_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 10)
    with pytest.raises(LiversegError, match="LS532"):
        load_latest(tmp_path, "other data", refuse)


def test_damaged_future_is_dropped_when_training_passes_it(tmp_path: Path) -> None:
    write(tmp_path, 10, 20)[1].write_bytes(b"x")
    write(tmp_path, 15)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000000010.pt", "step-000000015.pt"]


def test_half_written_file_is_not_seen_and_goes_with_the_next(tmp_path: Path) -> None:
    write(tmp_path, 10)
    (tmp_path / ".step-000000020.pt.7.part").write_bytes(b"half")
    found = load_latest(tmp_path, "data", refuse)
    assert found is not None
    assert found.step == 10
    write(tmp_path, 20)
    assert not [*tmp_path.glob("*.part")]


def test_planted_pickle_is_not_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "executed",)  # type: ignore[return-value]

    buffer = io.BytesIO()
    torch.save((1, "data", {"bomb": Bomb()}), buffer)
    payload = buffer.getvalue()
    (tmp_path / "step-000000001.pt").write_bytes(hashlib.sha256(payload).digest() + payload)
    with pytest.raises(LiversegError, match="LS531"):
        load_latest(tmp_path, "data", lambda _: None)
    assert not (tmp_path / "executed").exists()


def test_random_state_goes_through_a_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, Checkpoint(1, "data", {"random": random_state(CPU)}))
    drawn = [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()]
    found = load_latest(tmp_path, "data", refuse)
    assert found is not None
    restore_random_state(found.state["random"], CPU)
    assert [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()] == drawn
