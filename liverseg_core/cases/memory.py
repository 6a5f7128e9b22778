"""How much memory a case takes to ingest, told by its headers before any is set aside."""

from liverseg_core.arrays import Shape
from liverseg_core.cases.store import CHUNK
from liverseg_core.errors import LiversegError
from liverseg_core.volumes.nifti_header import NiftiHeader
from liverseg_core.volumes.planes import WIDE

SMALL_PARTS = 18_000_000
"""Chunks being packed, histograms, drawn positions, pieces of the packed file."""
CONVERTED = 36
"""Bytes of a voxel on its way from any type to HU or a class: float64 several times, and what comes out."""
SURVEYED = 17
"""Of a voxel in a plane of the label whose lesions are counted."""


def ingest_bytes(
    image: NiftiHeader, label: NiftiHeader | None, shape: Shape, axes: tuple[int, int, int], taps: int
) -> int:
    """Most bytes that ingesting a case holds at a time, besides its process's own.

    A scan whose slices are stacked along z streams through: some planes as stored, those that make an output
    plane, and one slab of the result. One that is stacked otherwise is held whole, and so is its label. A
    label of many thousand lesions takes more than this: five bytes for each.

    Args:
        image: The scan's header.
        label: The label's, if there is one.
        shape: The case's voxels along x, y and z.
        axes: Which stored axis becomes x, y and z.
        taps: Source planes that an output plane is made of: two, cubic four.
    """
    x, y, z = shape
    plane, slab = x * y, x * y * min(CHUNK, z)
    stored = image.shape[axes[0]] * image.shape[axes[1]]
    need = SMALL_PARTS + 2 * slab + plane * (4 * (taps + 1) + 2) + stored * _voxel_bytes(image)
    if label:
        need += slab + 2 * plane + stored * (_voxel_bytes(label) + SURVEYED)
    if axes[2] != 2:
        whole = _held_bytes(image, 4) + (_held_bytes(label, 1) if label else 0)
        need += image.shape[0] * image.shape[1] * image.shape[2] * whole
    return need


def check_memory(case: str, need: int, limit: int | None) -> None:
    """Refuse a case that would take more memory than there is for it.

    Raises:
        LiversegError: LS703, naming the case, what it needs and the limit.
    """
    if limit is None or need <= limit:
        return
    raise LiversegError(
        "LS703",
        f"{case} needs {need / 1e6:.0f} MB to be ingested, and a task has {max(limit, 0) / 1e6:.0f} MB",
        "a case that fits in the memory of one task",
        "Give the workers more memory or fewer threads, use fewer workers, or leave the case out",
    )


def _voxel_bytes(header: NiftiHeader) -> int:
    """Of a voxel in a plane as stored, and of what it passes through to become HU or a class."""
    plain = header.dtype.itemsize <= 2 and (header.slope, header.intercept) == (1, 0)
    return 2 * header.dtype.itemsize + (0 if plain else CONVERTED)


def _held_bytes(header: NiftiHeader, converted: int) -> int:
    """Of a voxel in a volume that is held whole."""
    return header.dtype.itemsize if header.dtype.itemsize < WIDE else converted
