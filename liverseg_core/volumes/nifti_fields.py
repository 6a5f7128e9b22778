"""The fields of a raw NIfTI-1 or NIfTI-2 header, the affine that they say, and a header like another.

nibabel has all this too, and tests hold ours to it; but importing nibabel imports pydicom, which imports half
of HTTP: a quarter of a second in every process that reads a scan.

Source: nifti1.h and nifti2.h, https://nifti.nimh.nih.gov.
"""

import struct
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from liverseg_core.arrays import Affine

Raw = np.ndarray[tuple[()], np.dtype[Any]]
"""A structured array of one header."""
Order = Literal["<", ">"]
Places = dict[str, tuple[str, int]]

NIFTI1: Places = {
    "sizeof_hdr": ("i4", 0), "data_type": ("S10", 4), "db_name": ("S18", 14), "dim_info": ("u1", 39),
    "dim": ("8i2", 40), "intent_p": ("3f4", 56), "intent_code": ("i2", 68), "datatype": ("i2", 70),
    "bitpix": ("i2", 72), "slice_start": ("i2", 74), "pixdim": ("8f4", 76), "vox_offset": ("f4", 108),
    "scl_slope": ("f4", 112), "scl_inter": ("f4", 116), "slice_end": ("i2", 120), "slice_code": ("i1", 122),
    "cal_max": ("f4", 124), "cal_min": ("f4", 128), "slice_duration": ("f4", 132), "toffset": ("f4", 136),
    "glmax": ("i4", 140), "glmin": ("i4", 144), "descrip": ("S80", 148), "aux_file": ("S24", 228),
    "qform_code": ("i2", 252), "sform_code": ("i2", 254), "quatern": ("3f4", 256), "qoffset": ("3f4", 268),
    "srow": ("(3,4)f4", 280), "intent_name": ("S16", 328), "magic": ("S4", 344),
}  # fmt: skip
NIFTI2: Places = {
    "sizeof_hdr": ("i4", 0), "magic": ("S4", 4), "datatype": ("i2", 12), "bitpix": ("i2", 14),
    "dim": ("8i8", 16), "intent_p": ("3f8", 80), "pixdim": ("8f8", 104), "vox_offset": ("i8", 168),
    "scl_slope": ("f8", 176), "scl_inter": ("f8", 184), "cal_max": ("f8", 192), "cal_min": ("f8", 200),
    "slice_duration": ("f8", 208), "toffset": ("f8", 216), "slice_start": ("i8", 224),
    "slice_end": ("i8", 232), "descrip": ("S80", 240), "aux_file": ("S24", 320), "qform_code": ("i4", 344),
    "sform_code": ("i4", 348), "quatern": ("3f8", 352), "qoffset": ("3f8", 376), "srow": ("(3,4)f8", 400),
    "slice_code": ("i4", 496), "intent_code": ("i4", 504), "intent_name": ("S16", 508),
    "dim_info": ("u1", 524),
}  # fmt: skip
TEXTS = ("descrip", "data_type", "db_name", "aux_file", "intent_name")
"""Fields that may name somebody."""
OF_THE_SCAN = (
    *("cal_max", "cal_min", "glmax", "glmin", "intent_code", "intent_p", "toffset"),
    *("dim_info", "slice_code", "slice_duration", "slice_end", "slice_start"),
)
"""Fields of a scan that would be wrong of its label: how to show its values, what they are, when they were
taken."""
TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
"""Real voxel types by their code."""
OTHER_TYPES = {
    0: "none",
    1: "binary",
    32: "complex64",
    128: "RGB",
    1536: "float128",
    1792: "complex128",
    2048: "complex256",
    2304: "RGBA",
}


@dataclass(frozen=True)
class Layout:
    """One of the two standards.

    Args:
        size: Of the header, in bytes.
        magic: Of a file with header and voxels.
        places: Each field's type and first byte.
        unit: A quaternion is one rotation, and its real part 0, within so much.
    """

    size: int
    magic: bytes
    places: Places
    unit: float

    def fields(self, raw: bytes | bytearray) -> tuple[Raw, Order]:
        """Views of a header's fields, and their byte order: in which the number of dimensions makes sense."""
        (dimensions,) = struct.unpack_from("<h" if self.size == 348 else "<q", raw, self.places["dim"][1])
        order: Order = "<" if 1 <= dimensions <= 7 else ">"
        formats, offsets = zip(*self.places.values(), strict=True)
        named: Any = {"names": [*self.places], "formats": formats, "offsets": offsets, "itemsize": self.size}
        return np.frombuffer(raw, np.dtype(named).newbyteorder(order), 1).reshape(()), order


LAYOUTS = {
    348: Layout(348, b"n+1", NIFTI1, 3 * float(np.finfo(np.float32).eps)),
    540: Layout(540, b"n+2", NIFTI2, 3 * float(np.finfo(np.float64).eps)),
}


def best_affine(fields: Raw, layout: Layout) -> Affine:
    """Voxel index → RAS+ millimetres: of the sform, else the qform, else of spacing and size alone.

    Raises:
        ValueError: The qform is asked and is none.
    """
    affine = np.eye(4)
    if fields["sform_code"] != 0:
        affine[:3] = fields["srow"]
    elif fields["qform_code"] != 0:
        affine = qform(fields, layout)
    else:
        spacing = fields["pixdim"][1:4] * np.array([-1, 1, 1], fields["pixdim"].dtype)
        affine[:3, :3] = np.diag(spacing)
        affine[:3, 3] = -(fields["dim"][1:4] - 1) / 2.0 * spacing
    return affine


def qform(fields: Raw, layout: Layout) -> Affine:
    """The affine of a header's quaternion, offset and spacing.

    Raises:
        ValueError: The quaternion is no rotation, a spacing is negative, or the handedness neither 1 nor −1.
    """
    x, y, z = b = fields["quatern"].astype(np.longdouble)
    real = 1 - b @ b
    if real < 0 and abs(real) >= layout.unit:
        raise ValueError("the quaternion is longer than 1")
    spacing, handedness = fields["pixdim"][1:4].copy(), fields["pixdim"][0]
    if (spacing < 0).any():
        raise ValueError("a spacing in pixdim is negative")
    if handedness not in (-1, 1):
        raise ValueError("qfac in pixdim[0] is neither 1 nor -1")
    spacing[2] *= handedness
    w = np.longdouble(0) if abs(real) < layout.unit else np.sqrt(real)
    scale = 2 / (w * w + x * x + y * y + z * z)
    sx, sy, sz = x * scale, y * scale, z * scale
    rotation = np.array([
        [1 - (y * sy + z * sz), x * sy - w * sz, x * sz + w * sy],
        [x * sy + w * sz, 1 - (x * sx + z * sz), y * sz - w * sx],
        [x * sz - w * sy, y * sz + w * sx, 1 - (x * sx + y * sy)],
    ])  # fmt: skip
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(spacing)
    affine[:3, 3] = fields["qoffset"]
    return affine


def note_in(raw: bytes) -> str:
    """The note that a header was written with, or what else stands in its place."""
    fields, _ = LAYOUTS[len(raw)].fields(raw)
    return bytes(fields["descrip"]).rstrip(b"\0").decode(errors="replace")


def header_like(
    raw: bytes,
    shape: tuple[int, ...],
    kind: type[np.unsignedinteger[Any]],
    slope: float = 1,
    note: str = "",
) -> tuple[bytes, np.dtype[Any]]:
    """What comes before the voxels of a file with the geometry of another, and nothing else of it.

    Args:
        raw: The other's header; what strict readers would refuse in it is repaired.
        shape: Sizes along its axes, and maybe along a fourth.
        kind: Type of the voxels.
        slope: Stored value × slope = value.
        note: Of at most 80 bytes, for whoever reads the file.

    Returns:
        These bytes, and how voxels are stored: in the other's byte order.
    """
    layout, whole = LAYOUTS[len(raw)], bytearray(raw)
    fields, order = layout.fields(whole)
    stored = np.dtype(kind).newbyteorder(order)
    dim, pixdim = fields["dim"], fields["pixdim"]
    if tuple(dim[1 : dim[0] + 1]) != shape:
        dim[:] = (len(shape), *shape, *[1] * (7 - len(shape)))
        pixdim[len(shape) + 1 :] = 1
    pixdim[1:4] = np.where(pixdim[1:4] == 0, 1, np.abs(pixdim[1:4]))
    pixdim[0] = pixdim[0] if pixdim[0] in (-1, 1) else 1
    fields["sizeof_hdr"], fields["magic"] = layout.size, layout.magic
    fields["datatype"] = next(code for code, name in TYPES.items() if np.dtype(name) == kind)
    fields["bitpix"] = 8 * stored.itemsize
    fields["scl_slope"], fields["scl_inter"] = slope, 0
    fields["vox_offset"] = layout.size + 4
    for text in set(TEXTS) & set(layout.places):
        fields[text] = b""
    fields["descrip"] = note.encode()
    for field in set(OF_THE_SCAN) & set(layout.places):
        fields[field] = 0
    return bytes(whole) + bytes(4), stored  # which say that no extensions follow
