"""The chunk reader: every box as Zarr reads it, only the chunks under it, and no damage without a name."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from liverseg_core.cases.chunk_reader import StoredVolume, read_box
from liverseg_core.cases.store import Case, open_case

SHAPE = (150, 70, 140)
"""Chunks: three along x, two along y, three along z."""
FIRST_SLAB = Path("image.ome.zarr/0/c/0/0/0")


@pytest.fixture
def case(build: SimpleNamespace, tmp_path: Path) -> Case:
    rng = np.random.default_rng(0)
    label = np.zeros(SHAPE, np.uint8)
    label[40:100, 20:60, 30:90], label[60:70, 30:40, 50:60] = 1, 2
    image = rng.integers(-1024, 1024, SHAPE, np.int16)
    return open_case(build.stored_case(tmp_path / "case", image, label))


def shard(case: Case) -> Path:
    return Path(case.image.store.root).parent / FIRST_SLAB


def test_no_file_stays_open(case: Case) -> None:
    volume = StoredVolume.of(case.image)
    before = open_files()
    for _ in range(50):
        read_box(volume, (30, 30, 30), (80, 30, 80), 0)
    assert open_files() == before


def test_only_chunks_under_the_box_are_read(case: Case, build: SimpleNamespace) -> None:
    """The first chunk of the first slab is damaged: boxes beside it are none the worse."""
    flip(shard(case), 1000)
    volume = StoredVolume.of(case.image)
    beside = read_box(volume, (64, 0, 0), (64, 64, 64), 0)
    assert np.ptp(beside) > 2000
    assert build.refusal(read_box, volume, (63, 0, 0), (64, 64, 64), 0) == "LS504"


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: flip(path, path.stat().st_size - 30),  # the index
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
    ],
    ids=["index", "cut short", "empty", "missing"],
)
def test_damage_has_a_name(case: Case, build: SimpleNamespace, damage: object) -> None:
    damage(shard(case))  # type: ignore[operator]
    assert build.refusal(read_box, StoredVolume.of(case.image), (0, 0, 0), (8, 8, 8), 0) == "LS504"


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 16
    path.write_bytes(data)
