"""The phantom: the same bytes for the same specification, a Decathlon tar, a plausible patient."""

import gzip
import hashlib
import json
import tarfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from liverseg_core.errors import LiversegError
from liverseg_core.phantom import case as scanner
from liverseg_core.phantom.dataset import PhantomSpec, phantom_case, write_phantom_tar
from liverseg_core.phantom.shapes import Ellipsoid, Grid, Texture, centred_axes

SMALL = (40, 40, 24)
CASES = range(16)


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar if entry.isfile()}


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("phantom") / "phantom.tar"
    write_phantom_tar(path, PhantomSpec(cases=13, unlabelled=2, size=SMALL))
    return path


@pytest.fixture(scope="module")
def canonical() -> list[tuple[np.ndarray, np.ndarray]]:
    """Sixteen cases in RAS+ order."""
    pairs = []
    for index in CASES:
        image, label, affine = phantom_case(0, index, (56, 56, 32))
        turned = [nib.as_closest_canonical(nib.Nifti1Image(part, affine)) for part in (image, label)]
        pairs.append(tuple(np.asarray(part.dataobj) for part in turned))
    return pairs


def test_same_specification_same_bytes(tar: Path, tmp_path: Path) -> None:
    again = tmp_path / "elsewhere" / "again.tar"
    write_phantom_tar(again, PhantomSpec(cases=13, unlabelled=2, size=SMALL))
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(tar.read_bytes()).digest()
    assert list(again.parent.iterdir()) == [again], "no temporary file stays"


def test_other_seed_other_patients() -> None:
    assert not np.array_equal(phantom_case(0, 0, SMALL)[1], phantom_case(1, 0, SMALL)[1])


def test_one_more_case_leaves_the_others_alone(tar: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "fewer.tar"
    write_phantom_tar(fewer, PhantomSpec(cases=12, unlabelled=2, size=SMALL))
    old, new = members(fewer), members(tar)
    added = new.keys() - old.keys()
    assert {name for name in added if "/._" not in name} == {
        "Task03_Liver/imagesTr/liver_12.nii.gz",
        "Task03_Liver/labelsTr/liver_12.nii.gz",
    }
    assert [name for name in old if old[name] != new[name]] == ["Task03_Liver/dataset.json"]


def test_dataset_json(tar: Path) -> None:
    content = members(tar)
    facts = json.loads(content["Task03_Liver/dataset.json"])
    assert "phantom" in facts["name"].lower()
    assert facts["modality"] == {"0": "CT"}
    assert facts["labels"] == {"0": "background", "1": "liver", "2": "cancer"}
    assert facts["tensorImageSize"] == "3D"
    assert (facts["numTraining"], facts["numTest"]) == (13, 2)
    assert {"description", "reference", "licence", "release"} <= facts.keys()
    assert facts["training"][3] == {
        "image": "./imagesTr/liver_3.nii.gz",
        "label": "./labelsTr/liver_3.nii.gz",
    }
    named = [path for pair in facts["training"] for path in pair.values()] + facts["test"]
    real = {name for name in content if "/._" not in name and name.endswith(".nii.gz")}
    assert {f"Task03_Liver/{path.removeprefix('./')}" for path in named} == real


def test_junk_beside_every_file(tar: Path) -> None:
    content = members(tar)
    junk = {name for name in content if "/._" in name}
    assert len(junk) * 2 == len(content)
    assert all(content[name].startswith(b"\x00\x05\x16\x07") for name in junk)


@pytest.mark.parametrize(("index", "dtype"), [(0, "int16"), (6, "float32"), (11, "uint16")])
def test_stored_images_are_the_case(tar: Path, index: int, dtype: str) -> None:
    image, label, affine = phantom_case(0, index, SMALL)
    content = members(tar)
    for kind, expected in (("images", image), ("labels", label)):
        data = gzip.decompress(content[f"Task03_Liver/{kind}Tr/liver_{index}.nii.gz"])
        stored = nib.Nifti1Image.from_bytes(data)
        np.testing.assert_array_equal(stored.get_fdata(), expected)
        for form in (stored.get_sform(coded=True), stored.get_qform(coded=True)):
            np.testing.assert_allclose(form[0], affine, atol=1e-4)
            assert form[1] == 1
        assert stored.header.get_xyzt_units()[0] == "mm"
        if kind == "images":
            assert stored.header.get_data_dtype() == dtype


def test_patients(canonical: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for image, label in canonical:
        assert image.dtype == np.int16
        assert label.dtype == np.uint8
        assert set(np.unique(label)) <= {0, 1, 2}
        assert image.min() >= -1024
        assert 350 < image.max() < 1000, "bone"
        assert np.median(image[:4, -4:]) == pytest.approx(-1000, abs=15), "air in front"
        assert 70 < image[label == 1].mean() < 130
        assert image[label == 1].std() > 15, "noise"


def test_some_have_no_tumour_and_tumours_are_darker(canonical: list[tuple[np.ndarray, np.ndarray]]) -> None:
    with_tumour = [(image, label) for image, label in canonical if (label == 2).any()]
    assert len(with_tumour) == len(canonical) - 2
    contrasts = [image[label == 1].mean() - image[label == 2].mean() for image, label in with_tumour]
    assert 25 < np.mean(contrasts) < 60


def test_liver_is_on_the_right_and_stored_every_way(canonical: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for _, label in canonical:
        x = np.nonzero(label)[0]
        assert x.mean() > (label.shape[0] - 1) / 2 + 3
    signs = {tuple(np.sign(phantom_case(0, index, (16, 16, 16))[2].diagonal()[:3])) for index in CASES}
    assert len(signs) >= 6, "of the eight ways to flip three axes"


def test_volumes_are_human() -> None:
    for index in range(4):
        _, label, affine = phantom_case(0, index, (56, 56, 32))
        spacing_mm = np.abs(affine.diagonal()[:3])
        millilitres = np.count_nonzero(label) * spacing_mm.prod() / 1000
        assert 800 < millilitres < 2300
        assert spacing_mm[0] == spacing_mm[1] != spacing_mm[2]
        assert 299 < spacing_mm[0] * 56 < 381
        assert 180 < spacing_mm[2] * 32 < 260


@pytest.mark.parametrize("voxels", [1, 40 * 40 * 7, 1 << 30])
def test_slabs_leave_no_seams(voxels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = phantom_case(0, 2, SMALL)
    monkeypatch.setattr(scanner, "SLAB_VOXELS", voxels)
    for whole, cut in zip(expected, phantom_case(0, 2, SMALL), strict=True):
        np.testing.assert_array_equal(whole, cut)


def test_texture_has_unit_variance() -> None:
    texture = Texture.draw(np.random.default_rng(0), (400, 400, 400), 20)
    assert texture.at(centred_axes((60, 60, 60), (6, 6, 6))).std() == pytest.approx(1, abs=0.1)


def test_depth_of_a_sphere_is_exact() -> None:
    grid = Grid(*(np.array([v], np.float32) for v in (0, 3, 4)))
    assert Ellipsoid((0, 0, 0), (7, 7, 7)).depth(grid)[0] == pytest.approx(2)


@pytest.mark.parametrize(
    "wrong", [{"cases": 0}, {"cases": 1001}, {"unlabelled": -1}, {"size": (8, 64, 64)}, {"seed": -1}]
)
def test_specification_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(LiversegError) as caught:
        PhantomSpec(**wrong)
    assert caught.value.code == "LS221"


def test_unwritable_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LiversegError) as caught:
        write_phantom_tar(
            tmp_path / "file" / "phantom.tar", PhantomSpec(cases=1, unlabelled=0, size=(16, 16, 16))
        )
    assert caught.value.code == "LS223"


def test_progress_names_the_cases(tmp_path: Path) -> None:
    said: list[str] = []
    write_phantom_tar(tmp_path / "p.tar", PhantomSpec(cases=2, unlabelled=1, size=(16, 16, 16)), said.append)
    assert said == ["liver_0", "liver_1", "liver_1000"]
