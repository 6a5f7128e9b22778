"""A slice's voxels in HU: unpacked, padding made air, rescaled."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer, Shaped
from pydicom.config import IGNORE
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from liverseg_core.dicom.files import Slice, quiet, read_tags
from liverseg_core.dicom.gate import UID_LIKE
from liverseg_core.errors import LiversegError

AIR_HU = -1024
TISSUE_HU = (-900, 3071)
"""What a patient and what is in him can have."""
DECODED = (
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)
"""The tags that say how voxels are stored."""


def check_packing(slices: Sequence[Slice]) -> None:
    """Refuse voxels that are packed in a way that no installed decoder knows, before any are read.

    Raises:
        LiversegError: LS355.
    """
    for one in {one.syntax: one for one in slices}.values():
        try:
            with quiet():
                known = get_decoder(UID(one.syntax)).is_available
        except NotImplementedError:  # a private syntax, or none
            known = False
        if not known:
            raise _unreadable(one)


def slice_hu(one: Slice, dtype: np.dtype[np.generic]) -> Shaped[np.ndarray, "row column"]:
    """Read a slice's voxels.

    Args:
        one: The slice.
        dtype: Of the result: int16, or float32 for fractions of HU.

    Raises:
        LiversegError: LS355 where they can't be read, LS318 where they are outside int16.
    """
    header = one.header
    stored = _stored(one)
    slope, intercept = header.scale
    hu = stored * slope + intercept
    if header.padding:
        hu[_is_padding(stored, header.padding, header.scale)] = AIR_HU
    low, high = hu.min(), hu.max()
    limits = np.iinfo(np.int16)
    if low < limits.min or high > limits.max:
        what = f"{one.path.name}: voxel values from {low:.6g} to {high:.6g}"
        raise LiversegError("LS318", what, "finite HU within int16", "Check the series' RescaleIntercept")
    return hu.astype(dtype)


def _stored(one: Slice) -> Integer[np.ndarray, "row column"]:
    try:
        with quiet():
            stored: np.ndarray = read_tags(one.path, DECODED, pixels=True).pixel_array
    except MemoryError:
        raise
    except Exception:  # of decoders of many hands; what they say may quote tags
        raise _unreadable(one) from None
    if stored.shape != (one.header.rows, one.header.columns) or stored.dtype.kind not in "iu":
        raise _unreadable(one)
    return stored


def _is_padding(
    stored: Integer[np.ndarray, "row column"], padding: tuple[int, int], scale: tuple[float, float]
) -> Shaped[np.ndarray, "row column"]:
    """Where a slice holds no measurement.

    Some writers leave 0 as the padding of voxels stored in HU, where it is water. So a value that tissue can
    have counts where a corner has it, and then is around the patient.
    """
    found: np.ndarray = (stored >= padding[0]) & (stored <= padding[1])
    ends = sorted(end * scale[0] + scale[1] for end in padding)
    is_tissue = ends[1] >= TISSUE_HU[0] and ends[0] <= TISSUE_HU[1]
    return found & (not is_tissue or found[[0, 0, -1, -1], [0, -1, 0, -1]].any())


def _unreadable(one: Slice) -> LiversegError:
    packed = f" ({UID(one.syntax, IGNORE).name})" if UID_LIKE.fullmatch(one.syntax) else ""
    return LiversegError(
        "LS355",
        f"the voxels of {one.path.name} can't be read{packed}",
        "slices that are whole, and not packed or packed by RLE, JPEG-LS or JPEG 2000",
        "Copy the file again, or unpack the series first, as with gdcmconv --raw",
    )
