"""CT series as DICOM files, and a model that takes a moment, for tests."""

from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from tiny_model import tiny_spec, write_tiny_model

from liverseg_core.dicom.files import CT

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
CANARY = "Canary^Patient"


def write_series(folder: Path, volume: np.ndarray, affine: np.ndarray, intercept: int = -1024) -> list[Path]:
    """CT slices of a volume (column, row, slice) whose RAS+ affine this is, named in no order."""
    folder.mkdir(parents=True, exist_ok=True)
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    study, series, frame = (generate_uid() for _ in range(3))
    paths = []
    for k in range(volume.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CT, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{(k * 37) % 1009:04d}"
        one = FileDataset(path, {}, file_meta=meta, preamble=bytes(128))
        one.SOPClassUID, one.SOPInstanceUID = CT, meta.MediaStorageSOPInstanceUID
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
        one.Modality, one.ImageType, one.InstanceNumber = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], k + 1
        one.PatientName, one.PatientID, one.PatientBirthDate, one.PatientSex = CANARY, "77", "", ""
        one.StudyDate, one.StudyTime, one.StudyID, one.AccessionNumber = "20200101", "101010", "1", ""
        one.ReferringPhysicianName, one.Manufacturer, one.SeriesNumber = "", "test", 1
        one.Rows, one.Columns = volume.shape[1], volume.shape[0]
        one.PixelSpacing = [f"{spacing[1]:.10g}", f"{spacing[0]:.10g}"]
        one.SliceThickness = f"{spacing[2]:.10g}"
        one.ImageOrientationPatient = [f"{v:.10g}" for v in (lps[:3, :2] / spacing[:2]).T.ravel()]
        one.ImagePositionPatient = [f"{v:.10g}" for v in (lps @ (0, 0, k, 1))[:3]]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
        one.RescaleSlope, one.RescaleIntercept = 1, intercept
        one.PixelData = np.ascontiguousarray(
            (volume[:, :, k].astype(np.int32) - intercept).T.astype("<i2")
        ).tobytes()
        one.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def make_model(folder: Path) -> Path:
    """A network that was never trained, whose labels are of all classes."""
    return write_tiny_model(folder, tiny_spec(32, 3))
