"""A CT series in DICOM, read as the volume that its slices are.

A series is handed on as the NIfTI file it would be, slice by slice, so that all that follows, its checks too,
is what a NIfTI file gets. No message holds what a DICOM file says of the patient, nor its identifiers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Float64

from liverseg_core.arrays import Affine
from liverseg_core.dicom.files import Slice, slices_among
from liverseg_core.dicom.voxels import check_packing, slice_hu
from liverseg_core.errors import LiversegError
from liverseg_core.volumes.nifti import Scan, open_scan
from liverseg_core.volumes.nifti_header import SPACING_MM

UNEVEN = 0.05
"""How far a slice may lie from its place, as a share of the slices' distance."""
SAME = {"rows": "Rows", "columns": "Columns", "spacing_mm": "PixelSpacing"}
DIRECTIONS = {"across": "ImageOrientationPatient", "down": "ImageOrientationPatient"}
ALIKE = 1e-4
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Series:
    """The slices of a CT, in order along their normal, and where voxel (column, row, slice) lies."""

    name: str
    slices: tuple[Slice, ...]
    affine: Affine

    @property
    def frame(self) -> str:
        """Its FrameOfReferenceUID, "" where no slice says one."""
        return next((one.header.frame for one in self.slices if one.header.frame), "")

    @property
    def flags(self) -> tuple[str, ...]:
        """Oddities that a data report should name."""
        found = {
            "no-frame-of-reference": not self.frame,
            "no-study-uid": not self.slices[0].header.study,
            "no-series-uid": not self.slices[0].header.series,
            "no-slice-uids": not self.can_be_referenced,
        }
        return tuple(flag for flag, is_so in found.items() if is_so)

    @property
    def can_be_referenced(self) -> bool:
        """Whether each slice has a UID of its own, by which a DICOM SEG can name it."""
        uids = {one.header.uid for one in self.slices}
        return "" not in uids and len(uids) == len(self.slices)

    def open(self) -> Scan:
        """The series as a scan, to be read once; its stored axes are column, row and slice."""
        first = self.slices[0].header
        header = nib.Nifti1Header()
        header.set_data_shape((first.columns, first.rows, len(self.slices)))
        scales = {value for one in self.slices for value in one.header.scale}
        header.set_data_dtype(np.int16 if all(value.is_integer() for value in scales) else np.float32)
        header.set_xyzt_units("mm")
        header.set_qform(self.affine, 1)
        header.set_sform(self.affine, 1)
        header["vox_offset"], header["magic"] = 352, b"n+1"
        dtype = header.get_data_dtype()
        size = 352 + first.columns * first.rows * len(self.slices) * dtype.itemsize
        scan = open_scan(self._pieces(header.binaryblock + bytes(4), dtype), size, self.name)
        return replace(scan, header=replace(scan.header, flags=(*scan.header.flags, *self.flags)))

    def _pieces(self, start: bytes, dtype: np.dtype[np.generic]) -> Iterator[bytes]:
        yield start
        for one in self.slices:
            yield slice_hu(one, dtype).tobytes()


def read_series(folder: Path) -> Series:
    """Find the CT series in a folder, and sort its slices.

    Raises:
        LiversegError: LS352 where there is no CT series, LS353 where there are several, LS354 where the
            slices do not make one regular volume; what `slices_among` and
            `check_packing` raise.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.is_file() or path.is_symlink())
    except OSError as error:
        what = f"{folder}: {error.strerror}"
        raise LiversegError("LS301", what, "a readable folder", "Check the path") from None
    found = slices_among(paths)
    if not found:
        raise LiversegError(
            "LS352",
            f"there are no CT slices in DICOM, and no NIfTI files, in {folder}",
            "a folder with the files of one CT series, or with .nii or .nii.gz files",
            "Check the path; files of several slices each have to be converted first",
        )
    series = {one.header.series for one in found}
    if len(series) > 1:
        what = f"{folder} holds {len(series)} CT series"
        raise LiversegError("LS353", what, "one series a folder", "Give each series a folder of its own")
    check_packing(found)
    return _sorted(folder, found)


def _sorted(folder: Path, found: Sequence[Slice]) -> Series:
    _check_alike(folder, found)
    if len(found) < 2:
        raise _irregular(folder, "it has one slice")
    first = found[0].header
    across, down = np.asarray(first.across), np.asarray(first.down)
    normal = np.cross(across, down)
    slices = sorted(found, key=lambda one: float(np.dot(one.header.position, normal)))
    places = np.array([one.header.position for one in slices])
    step = (places[-1] - places[0]) / (len(slices) - 1)
    apart = np.diff(places @ normal)
    _check_distances(folder, slices, apart)
    off = np.linalg.norm(places - (places[0] + np.arange(len(places))[:, None] * step), axis=1)
    if off.max() > UNEVEN * float(step @ normal):
        furthest = slices[int(off.argmax())].path.name
        raise _irregular(folder, f"{furthest} is shifted by {off.max():.4g} mm against the others")
    rows_mm, columns_mm = first.spacing_mm
    affine = np.eye(4)
    affine[:3] = np.stack([across * columns_mm, down * rows_mm, step, places[0]], axis=1)
    return Series(folder.name, tuple(slices), LPS_TO_RAS @ affine)


def _check_alike(folder: Path, found: Sequence[Slice]) -> None:
    first = found[0]
    for one in found[1:]:
        for field, tag in (SAME | DIRECTIONS).items():
            pair = [np.asarray(getattr(each.header, field)) for each in (first, one)]
            if np.abs(pair[0] - pair[1]).max() > ALIKE:
                raise _irregular(folder, f"{first.path.name} and {one.path.name} differ in {tag}")
    frames = {one.header.frame for one in found} - {""}
    if len(frames) > 1:
        raise _irregular(folder, "its slices differ in FrameOfReferenceUID")


def _check_distances(folder: Path, slices: Sequence[Slice], apart: Float64[np.ndarray, " gaps"]) -> None:
    """Slices at one place, or one missing, are said with their files."""
    usual = float(np.median(apart))
    names = [one.path.name for one in slices]
    pairs = [f"{above} and {below}" for above, below in pairwise(names)]
    if len(same := np.flatnonzero(apart < max(UNEVEN * usual, SPACING_MM[0]))):
        raise _irregular(folder, f"two slices lie at one place: {_listed([pairs[k] for k in same])}")
    odd = np.flatnonzero(np.abs(apart - usual) > UNEVEN * usual)
    if np.ptp(apart) > UNEVEN * apart.mean() and len(odd):
        far = _listed([f"{pairs[k]} {apart[k]:.4g} mm" for k in odd])
        raise _irregular(folder, f"its slices are {apart.min():.4g} to {apart.max():.4g} mm apart; {far}")


def _listed(items: Sequence[str]) -> str:
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def _irregular(folder: Path, trouble: str) -> LiversegError:
    return LiversegError(
        "LS354",
        f"the series in {folder} makes no regular volume: {trouble}",
        "parallel slices of one size, at equal distances along their normal, each with its place",
        "Add what is missing, leave out what is too much, or resample the series first",
    )
