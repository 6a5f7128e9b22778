"""The same scan is found whatever its header says; one that lies wrong is flagged, and can be mended."""

import functools
import gzip
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from held_flags import scan_flags

from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.cases.case_record import case_recipe, record
from liverseg_core.cases.data_report import MEANING, describe
from liverseg_core.cases.ingest import ingest_case
from liverseg_core.cases.scan_identity import identify
from liverseg_core.cases.split import split_cases
from liverseg_core.cases.target import image_planes, label_planes, plan_target
from liverseg_core.cases.verify import verify_case
from liverseg_core.config import IngestConfig, SplitConfig
from liverseg_core.errors import LiversegError
from liverseg_core.phantom.dataset import phantom_case
from liverseg_core.sources.source import CaseSource, Member, Source
from liverseg_core.sources.spacing_overrides import override_spacings
from liverseg_core.volumes.geometry import directions
from liverseg_core.volumes.nifti import as_hu, decode, read_nifti

ROWS: dict[str, tuple[str, str]] = {
    "1.3": (
        "a scan once more under another header: mirrored, turned, of another spacing, origin or slope",
        "duplicate-voxels names both; LS330 where one trains and the other validates",
    ),
    "1.4": (
        "a scan turned by 180°, mirrored, upside down or stood up under an unchanged header",
        "a flag that says which; right ones have none; axes in the override file mend it",
    ),
    "1.5": (
        "a signed permutation of the identity as affine; a unit sform beside the true pixdim",
        "identity-affine; pixdim-disagrees",
    ),
}

NATIVE = IngestConfig(spacing_mm=None)
LYING = {"spine-in-front", "liver-on-the-left", "lungs-below", "lies-across"}


def member(path: Path, volume: np.ndarray, affine: np.ndarray, slope: tuple[float, float] = (1, 0)) -> Member:
    """A NIfTI file of its own."""
    header = nib.Nifti1Image(volume, affine).header
    header.set_slope_inter(*slope)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    if volume.dtype.byteorder == ">":
        header = header.as_byteswapped(">")
    data = header.binaryblock + bytes(4) + volume.tobytes("F")
    path.write_bytes(gzip.compress(data, 1, mtime=0))
    return Member(path, path.name, 0, path.stat().st_size, path.name)


@functools.cache
def phantom(
    index: int, size: tuple[int, int, int] = (26, 24, 16)
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return phantom_case(0, index, size)


def reheadered(
    volume: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """The scan in any of 48 orders, of another type and slope, under a header of its own."""
    steps = tuple(slice(None, None, int(step)) for step in rng.choice((-1, 1), 3))
    turned = volume.transpose(rng.permutation(3))[steps]
    kind, slope = [
        ("<i2", (1, 0)),
        ("<f4", (1, 0)),
        (">i2", (1, 0)),
        ("<i2", (0.125, 0)),
        ("<u2", (1, -1024)),
    ][rng.integers(5)]
    stored = ((turned.astype(np.float64) - slope[1]) / slope[0]).astype(kind)
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[rng.permutation(3)] * rng.choice((-1, 1), 3) * rng.choice((1, 0.5, 3), 3)
    affine[:3, 3] = rng.uniform(-500, 500, 3)
    return stored, affine, slope


@pytest.mark.trouble("1.3")
def test_every_duplicate_is_found_and_no_other(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    found: dict[str, list[Any]] = {}
    for index in range(72):
        found[f"c{index}"] = [identify(phantom(index)[0])]
        for _ in range(10 if index < 20 else 0):
            volume = decode(member(tmp_path / "turned", *reheadered(phantom(index)[0], rng)).read(), "x")
            found[f"c{index}"].append(identify(np.stack([as_hu(volume, plane) for plane in volume.data])))
    assert [len(set(same)) for same in found.values()] == [1] * 72
    assert len({same[0].voxels for same in found.values()}) == 72
    assert len({same[0].histogram for same in found.values()}) == 72


@pytest.mark.trouble("1.3")
def test_verify_names_every_twin(tmp_path: Path) -> None:
    """A corrected spacing hides none."""
    rng, cases = np.random.default_rng(1), []
    for index in range(12):
        volume, _, affine = phantom(index)
        cases.append(CaseSource(f"c{index}", member(tmp_path / f"c{index}", volume, affine), None))
        if index < 6:
            image = member(tmp_path / f"t{index}", *reheadered(volume, rng))
            cases.append(CaseSource(f"t{index}", image, None, spacing_mm=(1, 2, 3) if index % 2 else None))
    rows = describe(verify_case(case, NATIVE) for case in cases)
    twins = {row.case: row.same_voxels_as for row in rows if "duplicate-voxels" in row.flags}
    assert twins == {f"{a}{n}": (f"{b}{n}",) for a, b in ("ct", "tc") for n in range(6)}


@pytest.mark.trouble("1.3")
def test_a_duplicate_is_no_validation_case(tmp_path: Path) -> None:
    config = IngestConfig(spacing_mm=(12, 12, 12))
    store, records = LocalStore(tmp_path / "store"), []
    for name, (order, affine) in {
        "a": ((1, 1), np.diag([12.0, 12, 12, 1])),
        "b": ((-1, -1), np.eye(4)),
    }.items():
        volume, label, _ = phantom(0)
        case = CaseSource(
            name,
            member(tmp_path / f"{name}.nii.gz", volume[:: order[0], :: order[1]], affine),
            member(tmp_path / f"{name}-label.nii.gz", label[:: order[0], :: order[1]], affine),
            spacing_mm=(9, 9, 9) if name == "b" else None,
        )
        stored = ingest_case(case, config, store)
        records.append(record(stored.key, stored.facts))
    with pytest.raises(
        LiversegError, match=r"LS330: validation case . has the same voxels as training case \w"
    ):
        split_cases("d", records, SplitConfig(validation=1), store)


TURNS = {
    "turned by 180°": ((-1, -1, 1), "spine-in-front"),
    "front and back swapped": ((1, -1, 1), "spine-in-front"),
    "mirrored": ((-1, 1, 1), "liver-on-the-left"),
    "upside down": ((1, 1, -1), "lungs-below"),
    "through its middle": ((-1, -1, -1), "spine-in-front"),
}


def prepared(image: Any, label: Any = None) -> tuple[Any, Any, np.ndarray, np.ndarray | None]:
    """A scan on its case's grid, and its label on the scan's own."""
    target = plan_target(image.header, IngestConfig(spacing_mm=(5, 5, 5)))
    prepared_label = None
    if label is not None:
        own = replace(target, grid=target.source)
        prepared_label = np.stack(list(label_planes(label, own, "nearest"))).T
    return image.header, target, np.stack(list(image_planes(image, target))).T, prepared_label


def lies(
    parts: tuple[Any, Any, np.ndarray, np.ndarray | None], steps: tuple[int, ...] = (1, 1, 1)
) -> set[str]:
    """The flags about how it lies, of a scan that is turned under its header."""
    header, target, *volumes = parts
    x, y, z = steps
    turned = [volume if volume is None else volume[::x, ::y, ::z] for volume in volumes]
    return LYING & set(scan_flags(header, target, *turned))


@pytest.mark.trouble("1.4")
def test_phantoms_that_lie_wrong() -> None:
    for index in range(3):
        volume, label, affine = phantom(index, (48, 48, 32))
        image, marked = (
            decode(bytes(nib.Nifti1Image(part, affine).to_bytes()), "x") for part in (volume, label)
        )
        for parts in (prepared(image), prepared(image, marked)):
            assert lies(parts) == set(), index
            for steps, flag in TURNS.values():
                assert flag in lies(parts, steps), (index, steps)


REAL = {
    "adrenal_ki67_052.nii.gz": None,
    "crlm1100_highres.nii.gz": "crlm1100_highres.nii.gz",
    "dcmqi3_ct.nii.gz": "dcmqi3_liver.nii.gz",
    "pre_103_portal.nii.gz": "pre_103_portal_label_shift_down1.nii.gz",
    "pre_6_portal.nii.gz": None,
    "lidc0314_lower110_ct.nii.gz": None,
    "example_ct.nii.gz": "example_liver_float64.nii.gz",
    "example_ct_sm.nii.gz": None,
}
NO_LUNGS = {"dcmqi3_ct.nii.gz"}
"""Three slices: up and down look alike."""


@pytest.mark.trouble("1.4")
@pytest.mark.parametrize("name", REAL)
def test_real_scans_that_lie_wrong(name: str) -> None:
    folder = Path(os.environ.get("LIVERSEG_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
    found = sorted(path for path in folder.rglob(name) if path.parent.name != "labelsTr")
    if not found:
        pytest.skip(f"no {name}: set LIVERSEG_REAL_DATA")
    image = read_nifti(found[0])
    label = REAL[name] and read_nifti(sorted(folder.rglob(REAL[name]))[-1])
    for parts in [prepared(image)] + ([prepared(image, label)] if label else []):
        assert lies(parts) == set()
        for steps, flag in TURNS.values():
            if flag != "lungs-below" or name not in NO_LUNGS:
                assert flag in lies(parts, steps), steps


@pytest.mark.trouble("1.4")
def test_a_mirrored_real_scan() -> None:
    folder = Path(os.environ.get("LIVERSEG_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
    for path in folder.rglob("spleen_8_image.nii.gz"):
        assert lies(prepared(read_nifti(path))) == {"liver-on-the-left"}
        return
    pytest.skip("no spleen_8_image.nii.gz: set LIVERSEG_REAL_DATA")


@pytest.mark.trouble("1.4")
def test_axes_in_the_override_file(tmp_path: Path) -> None:
    """A scan that lies right is turned under its header; its true axes in the file bring all back."""
    config = IngestConfig(spacing_mm=(6, 6, 6))
    volume, label, affine = phantom(3, (48, 48, 32))
    right = "".join(nib.aff2axcodes(affine))
    opposite = dict(zip("RLAPSI", "LRPAIS", strict=True))
    wrong = "".join(opposite[letter] for letter in right[:2]) + right[2]
    turned = affine.copy()
    turned[:3, :3] = directions(wrong) * np.linalg.norm(affine[:3, :3], axis=0)
    images = [member(tmp_path / f"{n}", volume, matrix) for n, matrix in enumerate((affine, turned, turned))]
    labels = [member(tmp_path / f"l{n}", label, matrix) for n, matrix in enumerate((affine, turned, turned))]
    cases = [CaseSource(name, *pair) for name, *pair in zip("abc", images, labels, strict=True)]
    table = tmp_path / "corrections.csv"
    table.write_text(f"case,x,y,z,axes\nc,,,,{right.lower()}\n")
    source = override_spacings(Source(tmp_path, "Toy", tuple(cases), 0), str(table))
    keys = [[case_recipe(case, config).key for case in some] for some in (cases, source.cases)]
    assert [old == new for old, new in zip(*keys, strict=True)] == [True, True, False]
    straight, wrongly, mended = (verify_case(case, config) for case in source.cases)
    flags = [[*row.flags] for row in describe([straight, wrongly, mended])]
    assert [LYING & set(found) for found in flags] == [set(), {"spine-in-front", "liver-on-the-left"}, set()]
    assert ["axes-overridden" in found for found in flags] == [False, False, True]
    assert all("duplicate-voxels" in found for found in flags)
    assert mended["anatomy"] == straight["anatomy"] != wrongly["anatomy"]
    assert (mended["orientation"], mended["axes_override"]) == (right, right)
    assert mended["spacing_override_mm"] is None
    for flag in ("spine-in-front", "liver-on-the-left", "lungs-below", "lies-across", "identity-affine"):
        assert "override file (ingest.spacing_overrides)" in MEANING[flag]


def signed_permutations() -> Iterator[np.ndarray]:
    rng = np.random.default_rng(2)
    for _ in range(12):
        yield np.eye(3)[rng.permutation(3)] * rng.choice((-1, 1), 3)


@pytest.mark.trouble("1.5")
def test_spacing_that_was_lost() -> None:
    for matrix in signed_permutations():
        affine = nib.affines.from_matvec(matrix, (3, -4, 5))
        image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), affine)
        assert decode(bytes(image.to_bytes()), "x").header.flags == ("identity-affine",)
        image.header["pixdim"][1:4] = 0.8, 0.8, 2.5  # what the scanner wrote, beside a unit sform
        image.header["qform_code"] = 0
        lost = decode(bytes(image.to_bytes()), "x").header
        assert lost.flags == ("identity-affine", "pixdim-disagrees")
        assert lost.corrected((0.8, 0.8, 2.5), None).flags == ("spacing-overridden",)


@pytest.mark.trouble("1.5")
@pytest.mark.parametrize(
    ("off", "flagged"), [(1.005, False), (1.02, True), (0, True), (np.nan, True), (-1, False)]
)
def test_pixdim_beside_the_affine(off: float, flagged: bool) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([-0.8, 0.8, 2.5, 1]))
    image.header["qform_code"] = 0
    image.header["pixdim"][3] *= off
    flags = decode(bytes(image.to_bytes()), "x").header.flags
    assert Counter(flags) == Counter(["pixdim-disagrees"] * flagged)
