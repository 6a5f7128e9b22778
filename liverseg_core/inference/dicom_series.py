"""A CT series in DICOM: read as the volume that its slices are, and its segmentation written as DICOM SEG.

A series is handed on as the NIfTI file it would be, slice by slice, so that all that follows, its checks too,
is what a NIfTI file gets. No message holds what a DICOM file says of the patient, nor its identifiers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
from jaxtyping import Float64
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.sr.codedict import codes

from liverseg_core.arrays import Affine, Label
from liverseg_core.classes import COLOURS
from liverseg_core.errors import LiversegError
from liverseg_core.provenance import library_versions
from liverseg_core.volumes.nifti import Scan, open_scan

CT = "1.2.840.10008.5.1.4.1.1.2"
"""CT Image Storage: one slice a file."""
NEEDED = (
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "RescaleSlope",
    "RescaleIntercept",
)
UNEVEN = 0.05
"""How far a slice may lie from its place, as a share of the slices' distance."""
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Slice:
    """One file of a series: all of it but its voxels."""

    path: Path
    header: Dataset


@dataclass(frozen=True)
class Series:
    """The slices of a CT, in order along their normal, and where voxel (column, row, slice) lies."""

    name: str
    slices: tuple[Slice, ...]
    affine: Affine

    def open(self) -> Scan:
        """The series as a scan, to be read once; its stored axes are column, row and slice."""
        first = self.slices[0].header
        header = nib.Nifti1Header()
        header.set_data_shape((first.Columns, first.Rows, len(self.slices)))
        scales = {float(value) for one in self.slices for value in _scale(one.header)}
        header.set_data_dtype(np.int16 if all(value.is_integer() for value in scales) else np.float32)
        header.set_xyzt_units("mm")
        header.set_qform(self.affine, 1)
        header.set_sform(self.affine, 1)
        header["vox_offset"], header["magic"] = 352, b"n+1"
        dtype = header.get_data_dtype()
        size = 352 + first.Columns * first.Rows * len(self.slices) * dtype.itemsize
        return open_scan(self._pieces(header.binaryblock + bytes(4), dtype), size, self.name)

    def write_seg(self, path: Path, label: Label) -> None:
        """Write a label as DICOM SEG: segment 1 the liver without its tumours, segment 2 the tumours.

        Args:
            path: Where to.
            label: On the series' own axes: column, row, slice. The SEG names each slice, and takes over
                patient and study.
        """
        version = library_versions(["liverseg"])["liverseg"]
        algorithm = hd.AlgorithmIdentificationSequence("liverseg", codes.DCM.ArtificialIntelligence, version)
        abnormal = codes.SCT.MorphologicallyAbnormalStructure
        meanings = {
            1: ("Liver", codes.SCT.Organ, codes.SCT.Liver),
            2: ("Tumour", abnormal, codes.SCT.Neoplasm),
        }
        described = [
            hd.seg.SegmentDescription(
                segment_number=number,
                segment_label=name,
                segmented_property_category=category,
                segmented_property_type=kind,
                algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm,
                anatomic_regions=[codes.SCT.Liver] if number == 2 else None,
                display_color=hd.color.CIELabColor.from_rgb(*COLOURS[number][:3]),
            )
            for number, (name, category, kind) in meanings.items()
        ]
        segmentation = hd.seg.Segmentation(
            source_images=[one.header for one in self.slices],
            pixel_array=np.ascontiguousarray(label.T),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=described,
            series_instance_uid=hd.UID(),
            series_number=1000,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="liverseg",
            manufacturer_model_name="liverseg",
            software_versions=version,
            device_serial_number="1",
            series_description="Liver and tumours, not for diagnosis",
        )
        segmentation.save_as(path)

    def _pieces(self, start: bytes, dtype: np.dtype[np.generic]) -> Iterator[bytes]:
        yield start
        for one in self.slices:
            yield _hu(one, dtype).tobytes()


def read_series(folder: Path) -> Series:
    """Find the CT series in a folder, and sort its slices.

    Files that are no DICOM, no CT slices or localisers are left alone.

    Raises:
        LiversegError: LS352 where there is no CT series, LS353 where there are several, LS354 where the
            slices do not make one regular volume.
    """
    found = [
        Slice(path, header)
        for path in sorted(folder.iterdir())
        if path.is_file() and (header := _ct_header(path)) is not None
    ]
    if not found:
        raise LiversegError(
            "LS352",
            f"there are no CT slices in DICOM, and no NIfTI files, in {folder}",
            "a folder with the files of one CT series, or with .nii or .nii.gz files",
            "Check the path; files of several slices each have to be converted first",
        )
    for one in found:
        if missing := [tag for tag in NEEDED if not one.header.get(tag) and one.header.get(tag) != 0]:
            raise _irregular(folder, f"{one.path.name} does not say its {', '.join(missing)}")
    series = {one.header.SeriesInstanceUID for one in found}
    if len(series) > 1:
        what = f"{folder} holds {len(series)} CT series"
        raise LiversegError("LS353", what, "one series a folder", "Give each series a folder of its own")
    return _sorted(folder, found)


def _ct_header(path: Path) -> Dataset | None:
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR":
        return None
    try:
        header = dcmread(path, stop_before_pixels=True)
    except (InvalidDicomError, EOFError):
        return None
    except OSError as error:
        what = f"{path}: {error.strerror}"
        raise LiversegError("LS301", what, "a readable file", "Check the path") from None
    a_slice = header.get("SOPClassUID") == CT and "LOCALIZER" not in header.get("ImageType", [])
    return header if a_slice else None


def _sorted(folder: Path, found: Sequence[Slice]) -> Series:
    first = found[0].header
    for tag in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
        if any(not np.allclose(one.header[tag].value, first[tag].value, atol=1e-4) for one in found):
            raise _irregular(folder, f"its slices differ in {tag}")
    across, down = np.reshape(np.asarray(first.ImageOrientationPatient, np.float64), (2, 3))
    normal = np.cross(across, down)
    if len(found) < 2:
        raise _irregular(folder, "it has one slice")
    in_order = sorted(found, key=lambda one: float(_position(one) @ normal))
    places = np.stack([_position(one) for one in in_order])
    step = (places[-1] - places[0]) / (len(in_order) - 1)
    apart = float(step @ normal)
    between = np.diff(places @ normal)
    if between.min() < UNEVEN * apart or apart <= 0:
        raise _irregular(folder, "two slices lie at one place")
    off = np.linalg.norm(places - (places[0] + np.arange(len(places))[:, None] * step), axis=1)
    if off.max() > UNEVEN * apart:
        distances = f"its slices are {between.min():.4g} to {between.max():.4g} mm apart"
        raise _irregular(folder, distances if np.ptp(between) > UNEVEN * apart else "its slices are shifted")
    rows_mm, columns_mm = (float(value) for value in first.PixelSpacing)
    affine = np.eye(4)
    affine[:3] = np.stack([across * columns_mm, down * rows_mm, step, places[0]], axis=1)
    return Series(folder.name, tuple(in_order), LPS_TO_RAS @ affine)


def _position(one: Slice) -> Float64[np.ndarray, "3"]:
    return np.asarray(one.header.ImagePositionPatient, np.float64)


def _scale(header: Dataset) -> tuple[float, float]:
    return float(header.RescaleSlope), float(header.RescaleIntercept)


def _hu(one: Slice, dtype: np.dtype[np.generic]) -> np.ndarray:
    """A slice's voxels (row, column) in HU."""
    slope, intercept = _scale(one.header)
    try:
        stored = dcmread(one.path).pixel_array
    except (
        InvalidDicomError,
        AttributeError,
        ValueError,
        RuntimeError,
        NotImplementedError,
        OSError,
    ) as error:
        trouble = str(error).partition("\n")[0][:200]
        raise LiversegError(
            "LS355",
            f"the voxels of {one.path.name} can't be read ({trouble})",
            "slices that are whole, and not packed or packed losslessly by RLE or JPEG-LS",
            "Copy the file again, or unpack the series first, as with gdcmconv --raw",
        ) from None
    hu = stored * slope + intercept
    low, high = hu.min(), hu.max()
    limits = np.iinfo(np.int16)
    if low < limits.min or high > limits.max:
        what = f"{one.path.name}: voxel values from {low:.6g} to {high:.6g}"
        raise LiversegError("LS318", what, "finite HU within int16", "Check the series' RescaleIntercept")
    return np.asarray(hu, dtype)


def _irregular(folder: Path, trouble: str) -> LiversegError:
    return LiversegError(
        "LS354",
        f"the series in {folder} makes no regular volume: {trouble}",
        "parallel slices of one size, at equal distances along their normal, each with its place",
        "Add what is missing, leave out what is too much, or resample the series first",
    )
