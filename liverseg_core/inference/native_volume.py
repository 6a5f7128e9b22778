"""Volumes written on a scan's own voxels, plane by plane: probabilities and uncertainty as gzipped NIfTI."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip
from jaxtyping import Float32

from liverseg_core.durable import is_disk_full
from liverseg_core.errors import LiversegError
from liverseg_core.volumes.geometry import Orientation
from liverseg_core.volumes.inflate import PIECE
from liverseg_core.volumes.nifti_fields import header_like
from liverseg_core.volumes.nifti_header import NiftiHeader
from liverseg_core.volumes.resample import ProbabilityPlane

PutPlane = Callable[[int, Float32[np.ndarray, "c y x"]], None]


@contextlib.contextmanager
def native_volume(
    path: Path,
    like: NiftiHeader,
    orientation: Orientation,
    kind: type[np.unsignedinteger[Any]],
    channels: int,
) -> Iterator[PutPlane]:
    """Write values from 0 to 1 as a volume with the geometry of `like`, of canonical planes in any order.

    A plane seldom lies in the file as it is: planes go into a plain file beside, which is packed at the end.

    Args:
        path: A `.nii.gz`; its folder exists.
        like: The scan's header.
        orientation: From the scan's axes to canonical ones.
        kind: What the values are stored as, with the slope that makes its largest number a 1. Floats would
            take eight times the room, for digits that are noise.
        channels: With more than one the file has a fourth axis for them.

    Yields:
        A function that takes a plane's z and its values (channel, y, x).
    """
    one = np.float32(np.iinfo(kind).max)
    sizes = (*like.shape, channels) if channels > 1 else like.shape
    header, dtype = header_like(like.raw, sizes, kind, float(1 / one))
    shape = (channels, *reversed(like.shape))
    plain = path.with_name(f"{path.name}.plain")

    def put(z: int, plane: Float32[np.ndarray, "c y x"]) -> None:
        # Mapped anew each time: what stays mapped counts as memory of this process.
        stored = np.memmap(plain, dtype, "r+", shape=shape).transpose(0, 3, 2, 1)
        for channel, values in zip(stored, plane, strict=True):
            orientation.to_canonical(channel)[:, :, z] = np.rint(values * one).T

    try:
        with plain.open("wb") as empty:
            empty.truncate(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        yield put
        with path.open("wb") as packed, igzip.IGzipFile("", "wb", fileobj=packed, mtime=0) as out:
            out.write(header)
            with plain.open("rb") as file:
                shutil.copyfileobj(file, out, PIECE)
    finally:
        plain.unlink(missing_ok=True)


def uncertainty(probabilities: ProbabilityPlane) -> Float32[np.ndarray, "1 y x"]:
    """The entropy of each voxel's class probabilities, as a share of the largest there can be.

    0 where one class is certain, 1 where all are equally probable. Sigmoids, which need not add up to 1, are
    made to.
    """
    shares = probabilities / np.maximum(probabilities.sum(axis=0), np.float32(1e-12))
    entropy = -(shares * np.log(np.maximum(shares, np.float32(1e-12)))).sum(axis=0, keepdims=True)
    found: Float32[np.ndarray, "1 y x"] = np.clip(entropy / np.log(len(shares)), 0, 1).astype(np.float32)
    return found


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write instead of `path`, whose place it takes when it is whole.

    Raises:
        LiversegError: LS208 when it can't be written, LS701 when the disk is full.
    """
    part = path.with_name(f".part-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        code = "LS701" if is_disk_full(error) else "LS208"
        what, allowed = f"cannot write {path}: {error.strerror}", "a place that this user may write to"
        raise LiversegError(code, what, allowed, "Choose another --out, or free some space") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
