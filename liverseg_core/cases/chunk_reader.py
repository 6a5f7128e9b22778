"""Boxes of a stored volume, read from its shards' files with nothing in between.

Zarr spends several times what the codec does on finding and joining chunks. A training patch needs some
twenty of them, so this reads what `store.py` writes directly: one shard per slab of planes, its chunks one
after another, then an index of (offset, bytes) pairs, each part with its CRC-32C. No file stays open, and
nothing is kept but the indices, so a dataset of any number of cases can be handed to any number of workers.
"""

import functools
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import zarr
from jaxtyping import Shaped, UInt64
from numcodecs import blosc

from liverseg_core.arrays import Shape
from liverseg_core.cases.store import CHUNK
from liverseg_core.errors import LiversegError

CHECKSUM_BYTES = 4
RESIDUE = google_crc32c.value(struct.pack("<I", google_crc32c.value(b"")))
"""The CRC of anything that its own CRC follows."""
SMALL = 1200
"""Bytes of a packed chunk that holds one value all over: most of a label's chunks, and all of them alike."""
Index = UInt64[np.ndarray, "chunks 2"]
Volume = Shaped[np.ndarray, "z y x"]


@dataclass(frozen=True)
class StoredVolume:
    """An image or label in the store's own layout.

    Args:
        folder: Of the array; shards are `c/<slab>/0/0` below it.
        shape: Voxels along x, y, z.
        dtype: Of the voxels.
    """

    folder: Path
    shape: Shape
    dtype: np.dtype[Any]
    _indices: dict[int, Index] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, array: "zarr.Array[Any]") -> "StoredVolume":
        """The same volume as an opened array of a case."""
        x, y, z = array.shape[::-1]
        return cls(Path(array.store.root) / array.path, (x, y, z), array.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole volume in memory."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def read(self) -> Shaped[np.ndarray, "x y z"]:
        """The whole volume, x fastest."""
        return read_box(self, (0, 0, 0), self.shape, 0)

    def chunks(self, slab: int, wanted: Sequence[int]) -> Iterator[Volume]:
        """Decode these chunks of a slab; each is overwritten by the next.

        Raises:
            LiversegError: LS504 when the shard is missing or one of its parts fails its checksum.
        """
        path = f"{self.folder}/c/{slab}/0/0"
        chunk = np.empty((CHUNK, CHUNK, CHUNK), self.dtype)
        try:
            file = os.open(path, os.O_RDONLY)
            try:
                index = self._indices.get(slab)
                if index is None:
                    index = self._indices[slab] = self._index(file)
                for number in wanted:
                    offset, size = index[number].tolist()
                    packed = _checked(os.pread(file, size, offset))
                    yield _decoded(packed, self.dtype) if size < SMALL else blosc.decompress(packed, chunk)
            finally:
                os.close(file)
        except (OSError, ValueError, RuntimeError) as error:
            raise LiversegError(
                "LS504",
                f"{path} cannot be read ({error})",
                "a shard as ingest wrote it",
                "Delete the case's folder and run the same command again",
            ) from None

    def _index(self, file: int) -> Index:
        count = -(-self.shape[0] // CHUNK) * -(-self.shape[1] // CHUNK)
        size = 16 * count + CHECKSUM_BYTES
        packed = os.pread(file, size, max(0, os.fstat(file).st_size - size))
        return np.frombuffer(_checked(packed), "<u8", 2 * count).reshape(count, 2)


def read_box(
    volume: StoredVolume | Volume, start: Shape, size: Shape, fill: int
) -> Shaped[np.ndarray, "x y z"]:
    """Read a box, touching only the chunks under it.

    Args:
        volume: A stored volume, or one in memory, indexed (z, y, x).
        start: First voxel (x, y, z); may lie outside the volume.
        size: Voxels along x, y, z.
        fill: Value outside the volume.

    Raises:
        LiversegError: LS504 when a chunk is missing or fails its checksum.
    """
    shape = volume.shape if isinstance(volume, StoredVolume) else volume.shape[::-1]
    low = [max(a, 0) for a in start]
    high = [min(a + n, limit) for a, n, limit in zip(start, size, shape, strict=True)]
    whole = all(b - a == n for a, b, n in zip(low, high, size, strict=True))
    box = np.empty(size[::-1], volume.dtype) if whole else np.full(size[::-1], fill, volume.dtype)
    if any(a >= b for a, b in zip(low, high, strict=True)):
        return box.T
    if isinstance(volume, np.ndarray):
        source = tuple(slice(a, b) for a, b in zip(low, high, strict=True))[::-1]
        target = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))[::-1]
        box[target] = volume[source]
        return box.T
    columns, rows, slabs = (range(a // CHUNK, -(-b // CHUNK)) for a, b in zip(low, high, strict=True))
    width = -(-shape[0] // CHUNK)
    cuts_x, cuts_y, cuts_z = (
        [_cut(number, *axis) for number in numbers]
        for numbers, *axis in zip((columns, rows, slabs), low, high, start, strict=True)
    )
    cuts = [(y, x) for y in cuts_y for x in cuts_x]
    wanted = [row * width + column for row in rows for column in columns]
    for slab, z in zip(slabs, cuts_z, strict=True):
        for chunk, (y, x) in zip(volume.chunks(slab, wanted), cuts, strict=True):
            box[z.target, y.target, x.target] = chunk[z.source, y.source, x.source]
    return box.T


class _Cut(NamedTuple):
    """Along one axis, a piece of a chunk and its place in the box."""

    source: slice
    target: slice


def _cut(number: int, low: int, high: int, start: int) -> _Cut:
    """What of this chunk lies within [low, high), and where in a box from `start` it goes."""
    first = number * CHUNK
    a, b = max(low, first), min(high, first + CHUNK)
    return _Cut(slice(a - first, b - first), slice(a - start, b - start))


@functools.lru_cache(maxsize=8)
def _decoded(packed: bytes, dtype: np.dtype[Any]) -> Volume:
    """A chunk that is likely to come again, in any case; read only."""
    chunk = np.empty((CHUNK, CHUNK, CHUNK), dtype)
    blosc.decompress(packed, chunk)
    chunk.flags.writeable = False
    return chunk


def _checked(packed: bytes) -> bytes:
    """What a checksum ends, checked as a whole: taking the end off would copy the rest.

    Raises:
        ValueError: When it is not the data's.
    """
    if google_crc32c.value(packed) != RESIDUE:
        raise ValueError("its checksum does not match")
    return packed
