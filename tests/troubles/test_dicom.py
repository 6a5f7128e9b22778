"""DICOM series as hospitals, anonymisers and converters leave them: the right volume, or refused by name."""

from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_files import CANARY, make_model, write_series
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from liverseg_core.dicom.files import quiet
from liverseg_core.dicom.seg import write_seg
from liverseg_core.dicom.series import Series, read_series
from liverseg_core.errors import LiversegError
from liverseg_core.inference.predict_scan import Wanted, predict_scan

ROWS: dict[str, tuple[str, str]] = {
    "1.2": (
        "slices without preamble or file meta; slices that are empty, cut or HTML",
        "all are read; refused with the names of those files, notes and DICOMDIR left alone",
    ),
    "1.7": ("a series whose RescaleType is Z_EFF, MGML or another unit", "refused (LS318)"),
    "1.8": ("PixelPaddingValue and its range, signed and unsigned", "air, before anything is computed"),
    "2.3": (
        "patient and study tags that are missing or odd",
        "label and SEG are written, such tags empty in it; no message has anything of the patient",
    ),
    "2.4": ("a series without FrameOfReferenceUID", "read; its SEG has one of its own, and a flag says so"),
    "2.5": ("PixelSpacing, RescaleIntercept and others that are no numbers", "LS354 with file and field"),
    "2.14": ("a slice far from the others", "LS354 with the distances and the files"),
    "4 SEG": ("any prediction of a series", "its SEG is deflated and has a ContentCreatorName"),
}
AFFINE = np.diag([-0.8, -0.7, 2.5, 1])
VOLUME = np.random.default_rng(1).normal(0, 200, (14, 11, 9)).astype(np.int16)
LABEL = np.where(VOLUME > 300, 2, VOLUME > 100).astype(np.uint8)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """The files of a series, named IM0000.dcm and so on from below."""
    written = write_series(tmp_path / "series", VOLUME, AFFINE)
    return [path.rename(path.with_name(f"IM{k:04d}.dcm")) for k, path in enumerate(written)]


def change(path: Path, **tags: Any) -> None:
    """Give a slice other tags; None takes one out, and a pair is a VR and a value."""
    with quiet():
        one = pydicom.dcmread(path)
        for keyword, value in tags.items():
            if keyword in one and (value is None or isinstance(value, tuple)):
                del one[keyword]
            if isinstance(value, tuple):
                one.add_new(keyword, *value)
            elif value is not None:
                setattr(one, keyword, value)
        one.save_as(path)


def volume(paths: list[Path]) -> np.ndarray:
    return read_series(paths[0].parent).open().whole().data


def refused(paths: list[Path]) -> str:
    """What reading a series is refused with."""
    with pytest.raises(LiversegError) as error:
        volume(paths)
    assert CANARY not in str(error.value)
    return str(error.value)


def bare(path: Path, syntax: pydicom.uid.UID, *, keep_meta: bool = False) -> None:
    """Write a slice without its preamble, and without file meta."""
    one = pydicom.dcmread(path)
    implicit, little = syntax.is_implicit_VR, syntax.is_little_endian
    if syntax == ExplicitVRBigEndian:
        one.PixelData = one.pixel_array.astype(">i2").tobytes()
    if not keep_meta:
        del one.file_meta
    else:
        one.file_meta.TransferSyntaxUID = syntax
    one.preamble = None
    pydicom.dcmwrite(path, one, implicit_vr=implicit, little_endian=little, enforce_file_format=False)


@pytest.mark.trouble("1.2")
@pytest.mark.parametrize("keep_meta", [False, True])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_slices_without_preamble_or_file_meta_are_slices(
    paths: list[Path], syntax: pydicom.uid.UID, keep_meta: bool
) -> None:
    for path in paths[-4:]:
        bare(path, syntax, keep_meta=keep_meta)
        assert path.read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(volume(paths), VOLUME)


@pytest.mark.trouble("1.2")
@pytest.mark.parametrize("name", ["IM{}.dcm", "IM{}", "{}", "1.2.840.{}", "CT.{}.ima", "slice{}.img"])
def test_damaged_slices_are_named_whatever_slices_are_called(paths: list[Path], name: str) -> None:
    paths = [path.rename(path.with_name(name.format(1000 + k))) for k, path in enumerate(paths)]
    damage = {paths[-3]: b"", paths[-2]: paths[-2].read_bytes()[:700], paths[-1]: b"<!DOCTYPE html><p>404"}
    for path, content in damage.items():
        path.write_bytes(content)
    message = refused(paths)
    assert message.startswith("LS355")
    assert all(path.name in message for path in damage)
    assert paths[0].name not in message


@pytest.mark.trouble("1.2")
@pytest.mark.parametrize("packed", [None, RLELossless, DeflatedExplicitVRLittleEndian])
def test_a_slice_cut_anywhere_is_named(paths: list[Path], packed: pydicom.uid.UID | None) -> None:
    if packed == RLELossless:
        one = pydicom.dcmread(paths[4])
        one.compress(packed, generate_instance_uid=False)
        one.save_as(paths[4])
    elif packed:
        one = pydicom.dcmread(paths[4])
        one.file_meta.TransferSyntaxUID = packed
        one.save_as(paths[4])
    whole = paths[4].read_bytes()
    np.testing.assert_array_equal(volume(paths), VOLUME)
    for size in [*range(0, len(whole) - 10, 97), len(whole) - 10]:
        paths[4].write_bytes(whole[:size])
        message = refused(paths)
        assert message.startswith("LS355"), size
        assert paths[4].name in message


@pytest.mark.trouble("1.2")
def test_slices_that_lead_nowhere_or_are_on_their_way_are_named(paths: list[Path]) -> None:
    link, part = paths[-1].with_name("IM0100.dcm"), paths[-1].with_name("IM0101.dcm.part")
    link.symlink_to("gone")
    part.touch()
    message = refused(paths)
    assert f"{link.name} (a link that leads to no file), {part.name} (0 bytes)." in message


@pytest.mark.trouble("1.2")
def test_voxels_that_no_decoder_reads_are_refused_before_any_are_read(paths: list[Path]) -> None:
    raw = paths[4].read_bytes()
    assert raw.count(b"1.2.840.10008.1.2.1\0") == 1
    paths[4].write_bytes(raw.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.9.9\0"))
    with pytest.raises(LiversegError, match=r"LS355: the voxels of IM0004\.dcm can't be read"):
        read_series(paths[0].parent)


@pytest.mark.trouble("1.2")
def test_what_is_no_slice_is_left_alone(paths: list[Path]) -> None:
    folder = paths[0].parent
    write_seg(read_series(folder), folder / "label_seg.dcm", LABEL)
    for name in ("notes.txt", "DICOMDIR", "README", "label.nii.gz", "index.html", ".IM0003.dcm", "empty"):
        (folder / name).write_bytes(b"" if name == "empty" else b"<p>no slice")
    scout = pydicom.dcmread(paths[0])
    scout.ImageType, scout.PixelSpacing = ["ORIGINAL", "PRIMARY", "LOCALIZER"], None
    scout.SeriesInstanceUID = generate_uid()
    scout.save_as(folder / "IM9999.dcm")
    np.testing.assert_array_equal(volume(paths), VOLUME)


@pytest.mark.trouble("1.7")
@pytest.mark.parametrize("unit", ["Z_EFF", "MGML", "HU_MOD", "EDW", "PCT", "W/m2"])
def test_voxels_in_another_unit_are_no_ct(paths: list[Path], unit: str) -> None:
    change(paths[4], RescaleType=unit)
    message = refused(paths)
    assert message.startswith("LS318: IM0004.dcm: its RescaleType is")
    assert unit in message or unit == "W/m2"


@pytest.mark.trouble("1.7")
@pytest.mark.parametrize("unit", [None, "", "HU", "US", "hu", "UNSPECIFIED"])
def test_units_that_are_hu_for_a_ct(paths: list[Path], unit: str | None) -> None:
    for path in paths:
        change(path, RescaleType=unit)
    np.testing.assert_array_equal(volume(paths), VOLUME)


OUTSIDE = np.hypot(*np.meshgrid(np.arange(14) - 6.5, np.arange(11) - 5, indexing="ij")) > 6


@pytest.mark.trouble("1.8")
@pytest.mark.parametrize(
    ("fill", "signed", "vr", "tag"),  # signed: how many of 16 bits a signed voxel has
    [
        (30000, 16, "SS", 30000),
        (-2000, 16, "SS", -2000),
        (-2000, 16, "US", 63536),
        (63536, 0, "US", 63536),
        (65535, 0, "US", 65535),
        (63536, 0, "SS", -2000),
        (-2000, 12, "US", 2096),
        (1064, 0, "US", 1064),
    ],
)
@pytest.mark.parametrize("ends", [1, 2])
def test_padding_is_air(paths: list[Path], fill: int, signed: int, vr: str, tag: int, ends: int) -> None:
    """A value by itself, or the end of a range that reaches from it, whichever end."""
    for path in paths:
        stored = pydicom.dcmread(path).pixel_array.copy()
        stored[OUTSIDE.T] = np.array(fill).astype(stored.dtype)
        if ends == 2:
            stored[0, 0] = stored[0, 0] - 3
        limit = {"PixelPaddingRangeLimit": (vr, tag - 5)} if ends == 2 else {}
        change(
            path,
            PixelData=stored.tobytes(),
            PixelRepresentation=int(signed > 0),
            BitsStored=signed or 16,
            HighBit=(signed or 16) - 1,
            PixelPaddingValue=(vr, tag),
            **limit,
        )
    stored = VOLUME.astype(np.int32) + 1024
    padded = OUTSIDE[..., None] | ((stored <= fill) & (stored >= fill - 5 * (ends - 1)))
    expected = np.where(padded, -1024, VOLUME)
    np.testing.assert_array_equal(volume(paths), expected)


@pytest.mark.trouble("1.8")
def test_water_is_not_padding(paths: list[Path]) -> None:
    """Stored in HU with a PixelPaddingValue of 0, as converters leave it."""
    body = VOLUME.copy()
    body[[0, 0, -1, -1], [0, -1, 0, -1]] = -1000
    body[5, 5, 5] = 0
    for k, path in enumerate(paths):
        hu = np.ascontiguousarray(body[:, :, k].T).tobytes()
        change(path, PixelData=hu, RescaleIntercept=0, PixelPaddingValue=("SS", 0))
    np.testing.assert_array_equal(volume(paths), body)


TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
ODD: dict[str, list[Any]] = {
    "PatientBirthDate": ["REMOVED", "1950-01-31", "19501332", "00000000", CANARY],
    "StudyDate": ["REMOVED", "2020.01.31"],
    "StudyTime": ["10:10", "256000", "REMOVED"],
    "PatientSex": ["male", "X", CANARY],
    "PatientID": [("LO", f"{CANARY}\\{CANARY}"), ("SQ", [])],
    "PatientName": ["no caret", "A" * 70, ("PN", "a^b\\c^d"), ("US", 5)],
    "StudyID": ["a number that is longer than it may be"],
    "AccessionNumber": ["x" * 40],
    "StudyInstanceUID": ["REMOVED", "", None],
    "SliceThickness": [None, ("LO", CANARY)],
    "SpecificCharacterSet": ["NO_SUCH", "ISO 2022 IR 87", None],
}


def predicted(paths: list[Path], tmp_path: Path) -> dict[str, Any]:
    """What predicting a series gives."""
    wanted = Wanted(paths[0].parent, tmp_path / "out.nii.gz")
    return predict_scan(wanted, make_model(tmp_path / "model"), "cpu")


def seg_of(series: Series, path: Path) -> pydicom.Dataset:
    """The SEG of a series, read back by highdicom and held to the label that it was made of."""
    write_seg(series, path, LABEL)
    seg = hd.seg.segread(path)
    read = seg.get_volume(combine_segments=True)
    in_ras = nib.as_closest_canonical(
        nib.Nifti1Image(read.array.astype(np.uint8), np.diag([-1.0, -1.0, 1.0, 1.0]) @ read.affine)
    )
    whole = nib.as_closest_canonical(nib.Nifti1Image(LABEL, AFFINE))
    np.testing.assert_allclose(in_ras.affine, whole.affine, atol=1e-3)
    np.testing.assert_array_equal(np.asarray(in_ras.dataobj), np.asarray(whole.dataobj))
    return seg


@pytest.mark.trouble("2.3")
@pytest.mark.parametrize("keyword", [*TYPE_2, "StudyInstanceUID", "SliceThickness", "InstanceNumber"])
def test_a_missing_tag_costs_no_seg(paths: list[Path], tmp_path: Path, keyword: str) -> None:
    for path in paths:
        change(path, **{keyword: None})
    series = read_series(paths[0].parent)
    seg = seg_of(series, tmp_path / "seg.dcm")
    if keyword in TYPE_2:
        assert keyword in seg
        assert not seg.get(keyword)
    assert ("no-study-uid" in series.flags) == (keyword == "StudyInstanceUID")


@pytest.mark.trouble("2.3")
@pytest.mark.parametrize("keyword", ODD)
@pytest.mark.filterwarnings("error")
def test_an_odd_tag_costs_no_seg(
    paths: list[Path], tmp_path: Path, keyword: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is left empty where the standard does not allow it; nothing is said that quotes it."""
    for value in ODD[keyword]:
        change(paths[0], **{keyword: value})
        seg = seg_of(read_series(paths[0].parent), tmp_path / "seg.dcm")
        if keyword in TYPE_2:
            assert str(seg.get(keyword) or "") == (value if value == "no caret" else "")
        assert hd.UID(seg.StudyInstanceUID).is_valid
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.trouble("2.3")
@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 192", "山田^太郎"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("ISO_IR 100", "Löwe^Jörg"),
    ],
)
def test_a_name_in_any_script_is_kept(paths: list[Path], tmp_path: Path, charset: Any, name: str) -> None:
    change(paths[0], SpecificCharacterSet=charset, PatientName=name)
    assert seg_of(read_series(paths[0].parent), tmp_path / "seg.dcm").PatientName == name


@pytest.mark.trouble("2.3")
@pytest.mark.trouble("2.4")
def test_a_series_stripped_of_all_but_its_geometry_gets_label_and_seg(
    paths: list[Path], tmp_path: Path
) -> None:
    uids = ("FrameOfReferenceUID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    for path in paths:
        change(path, **dict.fromkeys((*TYPE_2, *uids)))
    found = predict_scan(
        Wanted(paths[0].parent, tmp_path / "o.nii.gz"), make_model(tmp_path / "model"), "cpu"
    )
    assert nib.load(found["label"]).shape == VOLUME.shape
    assert pydicom.dcmread(found["seg"]).SOPClassUID.name == "Segmentation Storage"


@pytest.mark.trouble("2.4")
def test_without_a_frame_of_reference_the_seg_gets_one(paths: list[Path], tmp_path: Path) -> None:
    for path in paths:
        change(path, FrameOfReferenceUID=None)
    series = read_series(paths[0].parent)
    frames = {seg_of(series, tmp_path / f"{k}.dcm").FrameOfReferenceUID for k in range(2)}
    assert len(frames) == 1
    assert series.open().header.flags == ("no-frame-of-reference",)


@pytest.mark.trouble("2.4")
def test_a_series_that_is_none_is_found_before_a_model_is_loaded(paths: list[Path], tmp_path: Path) -> None:
    change(paths[4], PixelSpacing=None)
    with pytest.raises(LiversegError, match="LS354"):
        predict_scan(Wanted(paths[0].parent, tmp_path / "o.nii.gz"), tmp_path / "no model", "cpu")


@pytest.mark.trouble("2.4")
def test_slices_that_no_seg_can_name_get_a_label_alone(paths: list[Path], tmp_path: Path) -> None:
    """An anonymiser gave all slices one UID."""
    for path in paths:
        change(path, SOPInstanceUID="1.2.3")
    assert read_series(paths[0].parent).open().header.flags == ("no-slice-uids",)
    found = predict_scan(
        Wanted(paths[0].parent, tmp_path / "o.nii.gz"), make_model(tmp_path / "model"), "cpu"
    )
    assert "seg" not in found
    assert Path(found["label"]).exists()


NO_NUMBERS: list[tuple[str, Any, str]] = [
    ("PixelSpacing", ("LO", "5,357\\5,357"), "two numbers"),
    ("PixelSpacing", "0.8", "two numbers"),
    ("PixelSpacing", ["0.8", "0.8", "0.8"], "two numbers"),
    ("PixelSpacing", ("UT", "0.8\\0.8"), "two numbers"),
    ("PixelSpacing", ["0.8", "-0.8"], "two numbers from"),
    ("PixelSpacing", ["0.8", "nan"], "two numbers"),
    ("RescaleIntercept", ("LO", "-1024 HU"), "a number"),
    ("RescaleIntercept", ["-1024", "-1024"], "a number"),
    ("RescaleSlope", ("PN", CANARY), "a number"),
    ("RescaleSlope", "0", "other than 0"),
    ("ImagePositionPatient", ["0", "0"], "three numbers"),
    ("ImagePositionPatient", ("SQ", []), ""),
    ("ImageOrientationPatient", ["1", "0", "0", "0", "1"], "six numbers"),
    ("ImageOrientationPatient", ["0"] * 6, "two directions at right angles"),
    ("ImageOrientationPatient", ["1", "0", "0", "1", "0", "0"], "two directions at right angles"),
    ("Rows", 0, "a number from 1"),
    ("Rows", ("LO", CANARY), "a number"),
    ("PixelPaddingValue", ("LO", CANARY), "a number"),
    ("SamplesPerPixel", 3, "a number from 1 to 1"),
]


@pytest.mark.trouble("2.5")
@pytest.mark.parametrize(("keyword", "value", "allowed"), NO_NUMBERS)
def test_what_is_no_number_is_named_with_file_and_field(
    paths: list[Path], keyword: str, value: Any, allowed: str
) -> None:
    change(paths[0], **{keyword: value})
    message = refused(paths)
    said = f": its {keyword} is not {allowed}" if allowed else f" does not say its {keyword}"
    assert message.startswith(f"LS354: IM0000.dcm{said}")


@pytest.mark.trouble("2.5")
def test_text_that_a_decimal_tag_cannot_have_is_named(paths: list[Path]) -> None:
    """Written as bytes, with a comma for a point."""
    raw = paths[0].read_bytes()
    assert raw.count(b"0.7\\0.8 ") == 1
    paths[0].write_bytes(raw.replace(b"0.7\\0.8 ", b"0,7\\0,8 "))
    assert refused(paths).startswith("LS354: IM0000.dcm: its PixelSpacing is not two numbers")


@pytest.mark.trouble("2.14")
@pytest.mark.parametrize(
    ("places", "said"),
    [
        (
            (-99.48, 103.02, 104.27, 105.52),
            "its slices are 1.25 to 202.5 mm apart; IM0000.dcm and IM0001.dcm 202.5 mm",
        ),
        ((0, 2.5, 5, 10, 12.5), "its slices are 2.5 to 5 mm apart; IM0002.dcm and IM0003.dcm 5 mm"),
        ((0, 1, 2, 3, 3), "two slices lie at one place: IM0003.dcm and IM0004.dcm"),
        ((0, 0, 0, 1), "two slices lie at one place: IM0000.dcm and IM0001.dcm, IM0001.dcm and IM0002.dcm"),
    ],
)
def test_uneven_slices_are_named_with_their_distances(
    paths: list[Path], places: tuple[float, ...], said: str
) -> None:
    for path in paths[len(places) :]:
        path.unlink()
    for path, z in zip(paths, places, strict=False):
        change(path, ImagePositionPatient=[0, 0, z])
    assert f"makes no regular volume: {said}." in refused(paths)


@pytest.mark.trouble("4 SEG")
def test_a_seg_is_deflated_and_says_who_made_it(paths: list[Path], tmp_path: Path) -> None:
    seg = seg_of(read_series(paths[0].parent), tmp_path / "seg.dcm")
    assert seg.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian
    assert seg.ContentCreatorName == "liverseg^"
    assert seg.PatientName == CANARY
    raw = pydicom.dcmread(tmp_path / "seg.dcm")
    assert {int(one.SegmentNumber) for one in raw.SegmentSequence} == {1, 2}
    assert raw.pixel_array.sum() == np.count_nonzero(LABEL)
