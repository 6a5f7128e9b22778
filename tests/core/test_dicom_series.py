"""A DICOM series is the volume its slices are, its SEG holds the label; what is no volume is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from dicom_files import CANARY, LPS, make_model, write_series
from pydicom.uid import generate_uid

from liverseg_core.dicom.seg import write_seg
from liverseg_core.dicom.series import read_series
from liverseg_core.errors import LiversegError
from liverseg_core.inference.predict_scan import Wanted, predict_scan


@pytest.fixture
def small(build: Any) -> tuple[np.ndarray, np.ndarray]:
    """An oblique volume of noise, and its affine."""
    turn = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])
    volume = np.random.default_rng(1).normal(50, 200, (14, 11, 9)).astype(np.int16)
    return volume, build.affine("LPS", (0.7, 0.9, 2.5), turn)


def test_a_series_is_the_volume_its_slices_are(tmp_path: Path, small: tuple[np.ndarray, np.ndarray]) -> None:
    volume, affine = small
    write_series(tmp_path / "s", volume, affine)
    (tmp_path / "s" / "notes.txt").write_text("no DICOM")
    (tmp_path / "s" / "DICOMDIR").write_bytes(b"")
    series = read_series(tmp_path / "s")
    read = series.open().whole()
    np.testing.assert_array_equal(read.data, volume)
    np.testing.assert_allclose(read.header.affine, affine, atol=1e-4)


def test_fractions_of_hu_are_kept(tmp_path: Path, small: tuple[np.ndarray, np.ndarray]) -> None:
    volume, affine = small
    for path in write_series(tmp_path, volume, affine, intercept=0):
        one = pydicom.dcmread(path)
        one.RescaleSlope = "0.5"
        one.save_as(path)
    read = read_series(tmp_path).open().whole()
    assert read.header.dtype == np.float32
    np.testing.assert_array_equal(read.data, volume / 2)


def test_real_ct_as_a_series_gives_a_seg_with_the_same_voxels(real_data: Path, tmp_path: Path) -> None:
    """Its labels are those of the NIfTI that it was made from, and both readers find them in the SEG."""
    source = nib.as_closest_canonical(nib.load(real_data / "totalseg_example" / "example_ct.nii.gz"))
    hu = np.asarray(source.dataobj).astype(np.int16)
    nib.save(nib.Nifti1Image(hu, source.affine), tmp_path / "ct.nii.gz")
    turned = nib.Nifti1Image(hu, source.affine).as_reoriented(np.array([[0, -1], [1, -1], [2, 1]]))
    write_series(tmp_path / "series", np.asarray(turned.dataobj), turned.affine)
    model = make_model(tmp_path / "model")
    plain = predict_scan(Wanted(tmp_path / "ct.nii.gz", tmp_path / "out" / "ct.nii.gz"), model, "cpu")
    found = predict_scan(Wanted(tmp_path / "series", tmp_path / "out" / "series.nii.gz"), model, "cpu")
    assert {k: plain[k] for k in ("lesions", "liver_ml")} == pytest.approx(
        {k: found[k] for k in ("lesions", "liver_ml")}
    )

    labels = [nib.as_closest_canonical(nib.load(one["label"])) for one in (plain, found)]
    np.testing.assert_allclose(labels[0].affine, labels[1].affine, atol=1e-3)
    values = [np.asarray(label.dataobj) for label in labels]
    assert set(np.unique(values[0])) == {0, 1, 2}
    np.testing.assert_array_equal(*values)

    stored = np.asarray(nib.load(found["label"]).dataobj)
    seg = hd.seg.segread(found["seg"])
    assert [one.SegmentLabel for one in seg.SegmentSequence] == ["Liver", "Tumour"]
    read = seg.get_volume(combine_segments=True)  # its axes run along the slices' normal, row and column
    expected = np.linalg.inv(LPS) @ read.affine  # of the array's index to RAS+
    in_ras = nib.as_closest_canonical(nib.Nifti1Image(read.array.astype(np.uint8), expected))
    whole = np.zeros(values[1].shape, np.uint8)  # frames without either segment are left out of the SEG
    first = np.rint(np.linalg.solve(labels[1].affine, in_ras.affine[:, 3])[:3]).astype(int)
    whole[tuple(slice(a, a + n) for a, n in zip(first, in_ras.shape, strict=True))] = np.asarray(
        in_ras.dataobj
    )
    np.testing.assert_array_equal(whole, values[1])

    raw = pydicom.dcmread(found["seg"])
    series = read_series(tmp_path / "series")
    place = {one.header.uid: k for k, one in enumerate(series.slices)}
    again = np.zeros_like(stored)
    for frame, groups in zip(raw.pixel_array, raw.PerFrameFunctionalGroupsSequence, strict=True):
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        of = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        again[:, :, place[of]][frame.T > 0] = number
    np.testing.assert_array_equal(again, stored)
    assert raw.PatientName == CANARY


REAL = (
    "dcmqi_seg/ct-3slice",
    "dcmqi_seg/23x38x3/image",
    "dcmqi_seg/24x38x3/image",
    "ts_example_dicom/example_ct_dicom",
)
"""GE's padding, tiny ones, and JPEG 2000 without most UIDs and with names of UIDs."""


@pytest.mark.parametrize("folder", REAL)
def test_real_series_are_what_another_reader_reads(real_data: Path, folder: str) -> None:
    series = read_series(real_data / folder)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames([str(one.path) for one in series.slices])
    image = reader.Execute()
    read = series.open().whole().data
    hu = SimpleITK.GetArrayFromImage(image).T
    padding = np.flatnonzero(read != hu)
    assert set(read.flat[padding]) <= {-1024}
    assert set(hu.flat[padding]) <= {-3024}
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(series.affine, LPS @ matrix, atol=1e-6)


def test_real_head_with_a_tilted_gantry_is_refused(real_data: Path) -> None:
    with pytest.raises(
        LiversegError, match=r"LS354.*slices are 1\.081 to 6\.999 mm apart; 14\.dcm and 15\.dcm"
    ):
        read_series(real_data / "dcm_qa_ct_ge" / "In" / "GE")


def test_a_label_without_anything_is_a_seg_too(tmp_path: Path, small: tuple[np.ndarray, np.ndarray]) -> None:
    volume, affine = small
    write_series(tmp_path / "s", volume, affine)
    write_seg(read_series(tmp_path / "s"), tmp_path / "seg.dcm", np.zeros(volume.shape, np.uint8))
    assert not pydicom.dcmread(tmp_path / "seg.dcm").pixel_array.any()


def lost(paths: list[Path]) -> None:
    paths[4].unlink()


def doubled(paths: list[Path]) -> None:
    one = pydicom.dcmread(paths[4])
    one.SOPInstanceUID = generate_uid()
    one.save_as(paths[4].with_name("again"))


def changed(**tags: Any) -> Callable[[list[Path]], None]:
    """One slice with other values."""

    def change(paths: list[Path]) -> None:
        one = pydicom.dcmread(paths[4])
        for tag, value in tags.items():
            if value is None:
                delattr(one, tag)
            else:
                setattr(one, tag, value)
        one.save_as(paths[4])

    return change


def tilted(paths: list[Path]) -> None:
    """A gantry's tilt: each slice is shifted within its plane."""
    for k, path in enumerate(paths):
        one = pydicom.dcmread(path)
        place = [float(value) for value in one.ImagePositionPatient]
        one.ImagePositionPatient = [f"{place[0]:.6g}", f"{place[1] + 0.8 * k:.6g}", f"{place[2]:.6g}"]
        one.save_as(path)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lost, "LS354"),
        (doubled, "LS354"),
        (tilted, "LS315"),
        (changed(ImagePositionPatient=None), "LS354"),
        (changed(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]), "LS354"),
        (changed(PixelSpacing=[0.8, 0.8]), "LS354"),
        (changed(SeriesInstanceUID="1.2.3"), "LS353"),
        (changed(PixelData=b"\0\0"), "LS355"),
        (changed(RescaleIntercept="60000"), "LS318"),
        (lambda paths: [path.unlink() for path in paths[1:]], "LS354"),
        (lambda paths: [path.unlink() for path in paths], "LS352"),
    ],
)
def test_what_is_no_volume_is_refused(
    tmp_path: Path, small: tuple[np.ndarray, np.ndarray], change: Callable[[list[Path]], None], code: str
) -> None:
    change(write_series(tmp_path / "s", *small))
    with pytest.raises(LiversegError, match=code) as refused:
        read_series(tmp_path / "s").open().whole()
    assert CANARY not in str(refused.value)


def test_localisers_and_other_objects_are_left_alone(
    tmp_path: Path, small: tuple[np.ndarray, np.ndarray]
) -> None:
    paths = write_series(tmp_path, *small)
    for name, tag, value in (
        ("scout", "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        ("mr", "SOPClassUID", "1.2"),
    ):
        one = pydicom.dcmread(paths[0])
        setattr(one, tag, value)
        one.SeriesInstanceUID = generate_uid()
        one.save_as(tmp_path / name)
    assert len(read_series(tmp_path).slices) == small[0].shape[2]
