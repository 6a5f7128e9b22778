"""The data report: the same facts with and without storing, and a flag for each oddity and no other."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cc3d
import numpy as np
import pytest
from held_flags import scan_flags
from scipy.ndimage import binary_dilation

from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.cases.data_report import MEANING, describe
from liverseg_core.cases.ingest import ingest_case
from liverseg_core.cases.label_survey import LabelSurvey
from liverseg_core.cases.target import image_planes, plan_target
from liverseg_core.cases.verify import verify_case
from liverseg_core.config import IngestConfig
from liverseg_core.phantom.dataset import PhantomSpec, write_phantom_tar
from liverseg_core.sources.source import open_source
from liverseg_core.volumes.nifti import decode


def surveyed(label: np.ndarray) -> dict[str, Any]:
    survey = LabelSurvey()
    for z in range(label.shape[2]):
        survey.add(np.ascontiguousarray(label[:, :, z].T))
    return survey.facts((1, 2, 3))


@pytest.mark.parametrize("density", [0.02, 0.2, 0.5, 0.95])
@pytest.mark.parametrize("falling", [False, True])
def test_the_survey_of_planes_is_that_of_the_volume(density: float, falling: bool) -> None:
    rng = np.random.default_rng(int(100 * density))
    for shape in ((17, 13, 11), (1, 1, 30), (30, 1, 1), (9, 30, 1)):
        label = rng.choice(3, shape, p=[(1 - density) * 0.8, (1 - density) * 0.2, density]).astype(np.uint8)
        components = cc3d.connected_components(label == 2, connectivity=6)
        ids = set(np.unique(components)) - {0}
        beside_liver = binary_dilation(label == 1)  # by faces alone
        assert surveyed(label[:, :, ::-1] if falling else label) == {
            "voxels": np.bincount(label.ravel(), minlength=3).tolist(),
            "tumours": len(ids),
            "tumours_outside_liver": len(ids - set(np.unique(components[beside_liver]))),
            "edge_cm2": max(
                np.count_nonzero(label.take(end, axis)) * mm2 / 100
                for axis, mm2 in enumerate((6, 3, 2))
                for end in (0, -1)
            ),
        }


@pytest.mark.parametrize("code", ["LPS", "RAI", "PIR"])
def test_verify_finds_what_ingest_stores(build: SimpleNamespace, tmp_path: Path, code: str) -> None:
    image, label = build.ball((30, 28, 40))
    matrix = build.affine(code, (1.5, 2, 2.5))
    case = build.case(tmp_path, *(build.zipped(build.nifti(part, matrix)) for part in (image, label)))
    for config in (IngestConfig(), IngestConfig(spacing_mm=None, shrink=2)):
        stored = ingest_case(case, config, LocalStore(tmp_path / "store")).facts
        assert json.loads(json.dumps(verify_case(case, config))) == {**stored, "problem": None}
    (row,) = describe([stored])
    assert (row.orientation, row.shape, row.spacing_mm) == (code, (30, 28, 40), (1.5, 2, 2.5))
    assert row.liver_ml == pytest.approx((label > 0).sum() * 7.5 / 1000, abs=0.005)
    assert row.tumour_ml == pytest.approx((label == 2).sum() * 7.5 / 1000, abs=0.005)
    assert row.tumours == 1


def abdomen() -> tuple[np.ndarray, np.ndarray]:
    """At 4 mm: an ellipse of soft tissue in air, a liver of 1,500 ml with a tumour in it."""
    shape = (80, 64, 48)
    x, y, z = (4 * axis for axis in np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    body = ((x - 160) / 144) ** 2 + ((y - 128) / 104) ** 2 < 1
    distance = np.sqrt((x - 100) ** 2 + (y - 120) ** 2 + (z - 96) ** 2)
    label = ((distance < 71).astype(np.uint8) + (distance < 18)).astype(np.uint8)
    hu = np.where(body, 40, -1000) + 60 * (label == 1)
    return (hu + np.random.default_rng(0).normal(0, 15, shape)).astype(np.int16), label


def moved_tumour(label: np.ndarray) -> np.ndarray:
    label = label.copy()
    label[64:68, 30:32, 6] = 2
    return label


CHANGES = {
    "nothing odd": (lambda i, v: (i, v), []),
    "stored 1024 too high": (lambda i, v: (i + 1024, v), ["odd-hu-offset"]),
    "stored 1024 too low": (lambda i, v: (i - 1024, v), ["implausible-body", "odd-hu-offset"]),
    "grey values": (lambda i, v: (np.clip(i + 100, 0, 255), v), ["odd-hu-offset"]),
    "all air": (lambda i, v: (0 * i - 1000, v), ["implausible-body", "odd-hu-offset"]),
    "no liver": (lambda i, v: (i, 0 * v), ["no-liver"]),
    "tumour alone": (lambda i, v: (i, 2 * (v == 2)), ["no-liver", "tumour-outside-liver"]),
    "tumour elsewhere": (lambda i, v: (i, moved_tumour(v)), ["tumour-outside-liver"]),
    "small liver": (lambda i, v: (i, 1 * (v == 2)), ["implausible-liver"]),
    "unlabelled": (lambda i, v: (i, None), []),
}
PLACES = {
    "identity": (
        "RAS",
        (1, 1, 1),
        ["identity-affine", "implausible-body", "liver-on-the-left", "implausible-liver"],
    ),
    "thick": ("LPS", (4, 4, 5.5), ["thick-slices"]),
    "5 mm, nearly": ("LPS", (4, 4, 5.000001), []),
    "lying": ("PSL", (4, 4, 4), []),
    "too large": ("LPS", (12, 12, 4), ["thick-slices", "implausible-body", "implausible-liver"]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_flags_of_voxels(build: SimpleNamespace, tmp_path: Path, name: str) -> None:
    change, expected = CHANGES[name]
    assert flags(build, tmp_path, change(*abdomen()), build.affine("LPS", (4, 4, 4))) == expected


@pytest.mark.parametrize("name", PLACES)
def test_flags_of_place(build: SimpleNamespace, tmp_path: Path, name: str) -> None:
    code, spacing, expected = PLACES[name]
    parts = abdomen()
    if code == "PSL":
        parts = tuple(part.transpose(1, 2, 0) for part in parts)
    assert flags(build, tmp_path, parts, build.affine(code, spacing)) == expected


def flags(build: SimpleNamespace, folder: Path, parts: tuple, affine: np.ndarray) -> list[str]:
    kinds = zip(parts, (np.int16, np.uint8), strict=True)
    packed = [
        None if part is None else build.zipped(build.nifti(part.astype(kind), affine)) for part, kind in kinds
    ]
    config = IngestConfig(spacing_mm=(4, 4, 4))
    facts = verify_case(build.case(folder, *packed), config)
    assert facts["problem"] is None
    (row,) = describe([facts])
    assert {*row.flags} <= MEANING.keys()
    held = whole(parts, affine, config, build)
    assert held == [flag for flag in row.flags if flag != "tumour-outside-liver"]
    return [*row.flags]


def whole(parts: tuple, affine: np.ndarray, config: IngestConfig, build: SimpleNamespace) -> list[str]:
    """The flags of the same scan when it is held whole, as a prediction holds it."""
    volume = decode(build.nifti(parts[0].astype(np.int16), affine), "x")
    target = plan_target(volume.header, config)
    label = None if parts[1] is None else target.orientation.to_canonical(parts[1].astype(np.uint8))
    return scan_flags(volume.header, target, np.stack(list(image_planes(volume, target))).T, label)


def test_equal_voxels_under_several_names(build: SimpleNamespace, tmp_path: Path) -> None:
    image, label = (build.zipped(build.nifti(part, build.affine("LPS", (4, 4, 4)))) for part in abdomen())
    other = build.zipped(build.nifti(abdomen()[0] + abdomen()[1], build.affine("LPS", (4, 4, 4))))
    cases = {"b": (image, label), "a": (image, None), "c": (other, label), "d": (b"<html>", None)}
    rows = describe([verify_case(build.case(tmp_path, *parts, name)) for name, parts in cases.items()])
    assert [(row.case, row.same_voxels_as, "duplicate-voxels" in row.flags) for row in rows] == [
        ("a", ("b",), True),
        ("b", ("a",), True),
        ("c", (), False),
        ("d", (), False),
    ]
    assert (rows[3].labelled, (rows[3].problem or "")[:5]) == (False, "LS312")


REAL = {
    "dcmqi_ct3slice/dcmqi3_ct.nii.gz": [],
    "lidc0314_lower/lidc0314_lower110_ct.nii.gz": [],
    "msd_spleen_8/spleen_8_image.nii.gz": ["thick-slices"],
    "totalseg_example/example_ct.nii.gz": [],
    "CT_AVM.nii.gz": ["odd-hu-offset"],
}


@pytest.mark.parametrize("name", REAL)
def test_real_scans(build: SimpleNamespace, real_data: Path, tmp_path: Path, name: str) -> None:
    """CTs of chest and abdomen, and one whose air is stored as 0."""
    paths = [*real_data.rglob(Path(name).name)]
    if not paths:
        pytest.skip(f"no {name}")
    case = build.case(tmp_path, paths[0].read_bytes())
    (row,) = describe([verify_case(case, IngestConfig(spacing_mm=(3, 3, 3)))])
    assert [*row.flags] == REAL[name]


def test_a_phantom_is_not_odd(tmp_path: Path) -> None:
    write_phantom_tar(tmp_path / "p.tar", PhantomSpec(cases=4, unlabelled=1, size=(64, 64, 40)))
    cases = open_source(str(tmp_path / "p.tar")).cases
    rows = describe(verify_case(case, IngestConfig(spacing_mm=(5, 5, 5))) for case in cases)
    assert [row.flags for row in rows if set(row.flags) - {"thick-slices"}] == []
