"""A label as DICOM SEG, deflated, beside the series that it was made of.

highdicom is shown slices that are made anew from what the gate let through: no tag of the patient or study
can cost the label, whatever the files say there.
"""

import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import highdicom as hd
import numpy as np
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import DeflatedExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DS

from liverseg_core.arrays import Label
from liverseg_core.classes import COLOURS
from liverseg_core.dicom.files import CT, quiet, read_tags
from liverseg_core.dicom.gate import UID_LIKE, SliceHeader, words
from liverseg_core.dicom.series import Series
from liverseg_core.provenance import library_versions

TEXT = r"[^\\]{0,64}"
SHORT = r"[^\\]{0,16}"
DATE = r"(\d{8})?"
TIME = r"(([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?)?"
NAME = r"[^\\=]{0,64}(=[^\\=]{0,64}){0,2}"
ABOUT: Mapping[str, str] = {
    "PatientName": NAME,
    "PatientID": TEXT,
    "PatientBirthDate": DATE,
    "PatientSex": "[MFO]?",
    "StudyDate": DATE,
    "StudyTime": TIME,
    "StudyID": SHORT,
    "AccessionNumber": SHORT,
    "ReferringPhysicianName": NAME,
}
"""Tags of patient and study that a SEG has to have, most of them empty if need be, and what they can hold."""
CREATOR = "liverseg^"


def write_seg(series: Series, path: Path, label: Label) -> None:
    """Write a label as DICOM SEG: segment 1 the liver without its tumours, segment 2 the tumours.

    Patient and study are taken over as far as the files say them as the standard wants, and left empty
    otherwise. A study or a frame of reference without a UID gets one, made from the series'.

    Args:
        series: One that can be referenced.
        path: Where to.
        label: On the series' own axes: column, row, slice. The SEG names each slice.

    Raises:
        OSError: The file can't be written.
    """
    version = library_versions(["liverseg"])["liverseg"]
    with quiet():
        segmentation = hd.seg.Segmentation(
            source_images=_sources(series),
            pixel_array=np.ascontiguousarray(label.T),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=_segments(version),
            series_instance_uid=hd.UID(),
            series_number=1000,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="liverseg",
            manufacturer_model_name="liverseg",
            software_versions=version,
            device_serial_number="1",
            content_creator_name=CREATOR,
            series_description="Liver and tumours, not for diagnosis",
        )
        # One bit a voxel can be packed by no image syntax that readers know; a whole file can be deflated.
        segmentation.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        segmentation.save_as(path)


def about_patient(tags: Dataset) -> dict[str, str]:
    """The tags of patient and study, each empty where the standard does not allow what a file says."""
    return {keyword: _sound(words(tags, keyword), pattern) for keyword, pattern in ABOUT.items()}


def _sound(found: tuple[str, ...], pattern: str) -> str:
    if len(found) != 1 or not re.fullmatch(pattern, found[0]):
        return ""
    text = found[0]
    if not text.isprintable() or "\N{REPLACEMENT CHARACTER}" in text:
        return ""
    try:
        if pattern == DATE and text:
            date.fromisoformat(text)
    except ValueError:
        return ""
    return text


def _sources(series: Series) -> list[Dataset]:
    """The series' slices as highdicom needs them."""
    try:
        about = about_patient(read_tags(series.slices[0].path, ABOUT))
    except MemoryError:
        raise
    except Exception:  # it was readable; whatever became of it costs no label
        about = about_patient(Dataset())
    headers = [one.header for one in series.slices]
    of = headers[0].series or headers[0].uid
    about |= {
        "SeriesInstanceUID": of if UID_LIKE.fullmatch(of) else generate_uid(entropy_srcs=[of, "series"]),
        "StudyInstanceUID": headers[0].study or generate_uid(entropy_srcs=[of, "study"]),
        "FrameOfReferenceUID": series.frame or generate_uid(entropy_srcs=[of, "frame of reference"]),
    }
    apart = float(np.linalg.norm(series.affine[:3, 2]))
    return [_source(header, about, apart) for header in headers]


def _source(header: SliceHeader, about: Mapping[str, str], apart: float) -> Dataset:
    source = Dataset()
    source.SpecificCharacterSet = "ISO_IR 192"
    source.SOPClassUID, source.SOPInstanceUID, source.Modality = CT, header.uid, "CT"
    source.Rows, source.Columns = header.rows, header.columns
    source.ImagePositionPatient = _decimals(header.position)
    source.ImageOrientationPatient = _decimals((*header.across, *header.down))
    source.PixelSpacing, source.SliceThickness = _decimals(header.spacing_mm), _decimals((apart,))[0]
    for keyword, text in about.items():
        setattr(source, keyword, text)
    return source


def _decimals(values: tuple[float, ...]) -> list[DS]:
    return [DS(value, auto_format=True) for value in values]


def _segments(version: str) -> list[hd.seg.SegmentDescription]:
    algorithm = hd.AlgorithmIdentificationSequence("liverseg", codes.DCM.ArtificialIntelligence, version)
    abnormal = codes.SCT.MorphologicallyAbnormalStructure
    meanings = {
        1: ("Liver", codes.SCT.Organ, codes.SCT.Liver),
        2: ("Tumour", abnormal, codes.SCT.Neoplasm),
    }
    return [
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
