"""Ingest: every voxel keeps its place and value, the key names exactly what decides them."""

import dataclasses
import gzip
import hashlib
import itertools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from isal import igzip

from liverseg_core.artifacts.artifact import Artifact
from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.cases.case_record import case_recipe, record
from liverseg_core.cases.ingest import ingest_case
from liverseg_core.cases.scans import _kept, open_scans
from liverseg_core.cases.store import open_case, read_volume
from liverseg_core.cases.target import image_planes, label_planes, plan_target
from liverseg_core.cases.verify import verify_case
from liverseg_core.config import IngestConfig
from liverseg_core.sources.source import CaseSource


@pytest.fixture
def ball(build: SimpleNamespace) -> tuple[np.ndarray, np.ndarray]:
    return build.ball()


@pytest.fixture
def case(build: SimpleNamespace, tmp_path: Path, ball: tuple[np.ndarray, np.ndarray]) -> CaseSource:
    matrix = build.affine("LPS", (1.5, 1.5, 3))
    return build.case(tmp_path, *(build.zipped(build.nifti(part, matrix)) for part in ball))


STORAGES = [
    ("<i2", (1, 0)),
    (">i2", (1, 0)),
    ("<i4", (1, 0)),
    ("<f4", (1, 0)),
    (">f8", (1, 0)),
    ("<i8", (1, 0)),
    ("<u2", (1, -1024)),
    (">u2", (1, -1024)),
    ("<i2", (0.5, 8)),
    ("<i2", (-1, 0)),
]


@pytest.mark.parametrize(("kind", "slope"), STORAGES)
def test_storage_does_not_matter(
    build: SimpleNamespace,
    tmp_path: Path,
    case: CaseSource,
    ball: tuple[np.ndarray, np.ndarray],
    kind: str,
    slope: tuple[float, float],
) -> None:
    matrix = build.affine("LPS", (1.5, 1.5, 3))
    stored = ((ball[0] - slope[1]) / slope[0]).astype(kind)
    other = build.case(
        tmp_path / "other", build.zipped(build.nifti(stored, matrix, slope)), case.label.read()
    )
    ours, expected = (
        open_case(ingest_case(one, IngestConfig(), LocalStore(tmp_path / "s")).path) for one in (other, case)
    )
    np.testing.assert_array_equal(read_volume(ours.image), read_volume(expected.image))
    assert ours.fingerprint["content"] == expected.fingerprint["content"]


def digests(artifact: Artifact) -> dict[str, str]:
    return {entry["path"]: entry["sha256"] for entry in artifact.manifest["files"]}


def test_twice_the_same_bytes(case: CaseSource, tmp_path: Path) -> None:
    first, second = (ingest_case(case, IngestConfig(), LocalStore(tmp_path / name)) for name in "ab")
    assert (first.key, digests(first), first.facts) == (second.key, digests(second), second.facts)
    again = ingest_case(case, IngestConfig(), LocalStore(tmp_path / "a"))
    assert again.cached
    assert not first.cached
    assert record(again.key, again.facts) == record(first.key, first.facts)


def test_key_changes_with_what_decides_the_voxels_and_only_that(
    build: SimpleNamespace, case: CaseSource
) -> None:
    config = IngestConfig()
    key = case_recipe(case, config).key

    def other(part: str, **changes: object) -> CaseSource:
        return dataclasses.replace(case, **{part: dataclasses.replace(getattr(case, part), **changes)})

    same = [
        other("image", path=Path("/elsewhere"), offset=512, name="x"),
        other("label", path=Path("/e"), offset=9),
    ]
    assert {case_recipe(one, config).key for one in same} == {key}
    different = [
        case_recipe(other("image", digest="x"), config),
        case_recipe(other("label", digest="x"), config),
        case_recipe(dataclasses.replace(case, label=None), config),
        case_recipe(dataclasses.replace(case, case="another"), config),
        *(
            case_recipe(case, config.model_copy(update=change))
            for change in (
                {"spacing_mm": (1, 1, 2)},
                {"spacing_mm": None},
                {"shrink": 2.0},
                {"interpolation": "cubic"},
                {"label_interpolation": "nearest"},
                {"positions_per_class": 9},
            )
        ),
    ]
    keys = {recipe.key for recipe in different}
    assert len(keys) == len(different)
    assert key not in keys


def test_fingerprint_is_numpy_s(case: CaseSource, tmp_path: Path) -> None:
    stored = ingest_case(case, IngestConfig(positions_per_class=50), LocalStore(tmp_path / "s"))
    opened = open_case(stored.path)
    image, label, found = read_volume(opened.image), read_volume(opened.label), opened.fingerprint
    assert found["voxels"] == np.bincount(label.ravel(), minlength=3).tolist()
    for name, mask in {"body_hu": image > -500, "liver_hu": label == 1, "tumour_hu": label == 2}.items():
        values = image[mask]
        assert found[name]["mean"] == pytest.approx(values.mean(), abs=1e-3)
        assert found[name]["std"] == pytest.approx(values.std(), abs=1e-3)
        for percent in (0.5, 1, 5, 50, 95, 99, 99.5):
            assert found[name][f"p{percent:g}"] == np.percentile(values, percent, method="inverted_cdf")
    assert found["boxes"][0] is None
    for c in (1, 2):
        where = np.argwhere(label == c)
        assert found["boxes"][c] == np.stack([where.min(0), where.max(0) + 1], 1).tolist()
    assert opened.positions.keys() == {0, 1, 2}
    for c, positions in opened.positions.items():
        assert len(positions) == 50 == len({tuple(position) for position in positions})
        assert np.all(label[tuple(positions.T)] == c)
    assert record(stored.key, stored.facts).tumour


def test_positions_are_spread_and_bounded(build: SimpleNamespace, tmp_path: Path) -> None:
    """A sample over three slabs takes from each what it holds; a small class is kept whole."""
    label = np.zeros((40, 40, 160), np.uint8)
    label[5:35, 5:35, :] = 1
    label[20, 20, 70:77] = 2
    raw = build.zipped(build.nifti(label, np.eye(4)))
    positions = open_case(
        ingest_case(build.case(tmp_path, raw, raw), IngestConfig(), LocalStore(tmp_path / "s")).path
    ).positions
    assert len(positions[1]) == 2000
    assert 1000 < len(positions[0]) <= 2000
    assert sorted(map(tuple, positions[2].tolist())) == [(20, 20, z) for z in range(70, 77)]
    for c in (0, 1):
        shares = np.bincount(positions[c][:, 2] // 16, minlength=10) / len(positions[c])
        assert np.abs(shares - 0.1).max() < 0.03


def test_unlabelled_and_odd_labels(
    build: SimpleNamespace, tmp_path: Path, ball: tuple[np.ndarray, np.ndarray]
) -> None:
    image = build.zipped(build.nifti(ball[0], np.diag([1.5, 1, 1, 1])))
    variants = {"none": None, "empty": 0 * ball[1], "tumour": 2 * (ball[1] > 0).astype(np.uint8)}
    found = {}
    for name, label in variants.items():
        packed = None if label is None else build.zipped(build.nifti(label, np.diag([1.5, 1, 1, 1])))
        found[name] = ingest_case(
            build.case(tmp_path, image, packed, name), IngestConfig(), LocalStore(tmp_path / "s")
        )
    records = {name: record(artifact.key, artifact.facts) for name, artifact in found.items()}
    assert [records[name].labelled for name in variants] == [False, True, True]
    assert [records[name].tumour for name in variants] == [False, False, True]
    assert [found[name].facts["flags"] for name in variants] == [[], ["no-liver"], ["no-liver"]]
    opened = open_case(found["none"].path)
    assert opened.label is None
    assert len(opened.positions[0]) > 0
    assert len(opened.positions[1]) == 0
    assert not (found["none"].path / "label.nii.gz").exists()
    assert (found["empty"].path / "label.nii.gz").read_bytes() == build.zipped(
        build.nifti(variants["empty"], np.diag([1.5, 1, 1, 1]))
    )


MISMATCHES = [
    ("the same", lambda a, b: (a[1], b), ""),
    ("a hair apart", lambda a, b: (a[1], b + 0.001), ""),
    ("shape", lambda a, b: (a[1][:-1], b), "LS321"),
    ("origin", lambda a, b: (a[1], b + np.eye(4, k=3)), "LS321"),
    ("spacing", lambda a, b: (a[1], b * 1.1), "LS321"),
    ("flip", lambda a, b: (a[1], b @ np.diag([-1, 1, 1, 1])), "LS321"),
    ("class 3", lambda a, b: (a[1] + 1, b), "LS320"),
]


@pytest.mark.parametrize(("name", "change", "code"), MISMATCHES, ids=[name for name, *_ in MISMATCHES])
def test_a_label_must_lie_on_its_scan(
    build: SimpleNamespace, tmp_path: Path, ball: tuple, name: str, change: object, code: str
) -> None:
    matrix = build.affine("LPS", (1.5, 1.5, 3))
    label, moved = change(ball, matrix)
    case = build.case(
        tmp_path, build.zipped(build.nifti(ball[0], matrix)), build.zipped(build.nifti(label, moved))
    )
    assert build.refusal(ingest_case, case, IngestConfig(), LocalStore(tmp_path / "s")) == code
    problem = verify_case(case)["problem"]
    assert (problem or "")[:5] == code
    assert code == "" or not list((tmp_path / "s").rglob("manifest.json"))


def test_bad_voxels_and_a_bomb_stop_the_case(build: SimpleNamespace, tmp_path: Path) -> None:
    for name, image, code in [
        ("nan", build.nifti(np.full((4, 4, 4), np.nan, np.float32), np.eye(4)), "LS318"),
        ("late", build.nifti(np.arange(64, dtype=np.int32).reshape(4, 4, 4) * 1000, np.eye(4)), "LS318"),
        ("bomb", build.nifti(np.zeros((40, 400, 400), np.int16), np.diag([100, 100, 100, 1.0])), "LS319"),
    ]:
        case = build.case(tmp_path, build.zipped(image), name=name)
        assert build.refusal(ingest_case, case, IngestConfig(), LocalStore(tmp_path / "s")) == code


CODES = [
    "".join(code) for axes in itertools.permutations(("LR", "PA", "IS")) for code in itertools.product(*axes)
]


@pytest.mark.parametrize("code", CODES)
def test_streaming_is_the_whole_volume_s_answer(build: SimpleNamespace, tmp_path: Path, code: str) -> None:
    """Whatever the stored order: upwards, from the top, or not stacked along z at all; over three slabs."""
    shape = [0, 0, 0]
    for axis, letter in enumerate(code):
        shape[axis] = {"L": 13, "R": 13, "A": 11, "P": 11, "I": 70, "S": 70}[letter]
    rng = np.random.default_rng(0)
    image = rng.integers(-1000, 1000, shape).astype(">i2" if code[0] == "L" else "<i2")
    label = rng.integers(0, 3, shape).astype(np.float32 if code[1] in "PS" else np.uint8)
    spacing = [2.1 if letter in "IS" else 0.7 for letter in code]
    parts = [build.nifti(part, build.affine(code, spacing)) for part in (image, label)]
    case = build.case(
        tmp_path, build.zipped(parts[0]), parts[1] if code[2] in "IL" else build.zipped(parts[1])
    )
    interpolation = "cubic" if code[0] in "AP" else "linear"
    config = IngestConfig(
        interpolation=interpolation, label_interpolation="vote" if code[1] in "PS" else "nearest"
    )
    opened = open_case(ingest_case(case, config, LocalStore(tmp_path / "s")).path)
    whole_image, whole_label = (scan and scan.whole() for scan in open_scans(case))
    assert whole_image is not None
    target = plan_target(whole_image.header, config)
    assert target.grid.shape[2] == 147
    assert whole_label is not None
    np.testing.assert_array_equal(opened.image[:], np.stack(list(image_planes(whole_image, target))))
    expected = np.stack(list(label_planes(whole_label, target, config.label_interpolation)))
    np.testing.assert_array_equal(opened.label[:], expected)


@pytest.mark.parametrize("kind", ["zipped", "plain"])
def test_the_source_s_label_is_kept_whatever_its_pieces(
    build: SimpleNamespace, tmp_path: Path, case: CaseSource, kind: str
) -> None:
    raw = gzip.decompress(case.label.read())
    stored = build.zipped(raw) if kind == "zipped" else raw
    found = set()
    for size in (len(stored), 1000, 7):
        path = tmp_path / str(size)
        passed = b"".join(_kept((stored[at : at + size] for at in range(0, len(stored), size)), path))
        assert passed == stored
        found.add(path.read_bytes())
    assert len(found) == 1
    assert gzip.decompress(found.pop()) == raw


@pytest.mark.parametrize("depth", [64, 65])
@pytest.mark.parametrize("part", ["image", "label"])
@pytest.mark.parametrize(
    ("name", "change", "code"),
    [
        ("crc", lambda raw: gzip.compress(raw)[:-8] + b"abcd" + gzip.compress(raw)[-4:], "LS311"),
        ("garbage", lambda raw: gzip.compress(raw) + b"x", "LS311"),
        ("cut", lambda raw: gzip.compress(raw)[:-4], "LS311"),
        ("long", lambda raw: gzip.compress(raw + bytes(1)), "LS317"),
        ("short", lambda raw: gzip.compress(raw[:-1]), "LS317"),
        ("long and plain", lambda raw: raw + bytes(1), "LS317"),
    ],
)
def test_the_end_of_every_member_is_checked_before_the_case_is(
    build: SimpleNamespace, tmp_path: Path, depth: int, part: str, name: str, change: object, code: str
) -> None:
    """Also where the last slab was full already."""
    raw = build.nifti(np.zeros((3, 4, depth), np.uint8), np.diag([1, 1, -1, 1.0]))
    parts = {"image": build.zipped(raw), "label": build.zipped(raw)} | {part: change(raw)}
    case = build.case(tmp_path, parts["image"], parts["label"])
    assert build.refusal(ingest_case, case, IngestConfig(), LocalStore(tmp_path / "s")) == code
    assert not list((tmp_path / "s").rglob("manifest.json"))


MEASURE = """
import sys
from pathlib import Path
from liverseg_core.config import IngestConfig
from liverseg_core.cases.ingest import ingest_case
from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.sources.source import open_source

def megabytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1000

(case,) = open_source(sys.argv[1]).cases
before = megabytes("VmRSS")
ingest_case(case, IngestConfig(spacing_mm=(1.5, 1.5, 1.5)), LocalStore(Path(sys.argv[2])))
print(megabytes("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own count")
def test_memory_does_not_grow_with_the_volume(build: SimpleNamespace, tmp_path: Path) -> None:
    """A scan of 210 MB with a label of 105 MB, both stored from the top."""
    parts = [
        igzip.compress(build.nifti(np.zeros((512, 512, 400), kind, "F"), np.diag([0.8, 0.8, -1, 1])), mtime=0)
        for kind in (np.int16, np.uint8)
    ]
    source = build.tar(tmp_path / "T.tar", build.members({"c": tuple(parts)}))
    command = [sys.executable, "-c", MEASURE, str(source), str(tmp_path / "s")]
    assert float(subprocess.check_output(command)) < 150


def test_a_real_ct(build: SimpleNamespace, real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "totalseg_example"
    image, label = (folder / name for name in ("example_ct.nii.gz", "example_liver_float64.nii.gz"))
    case = build.case(tmp_path, image.read_bytes(), label.read_bytes())
    opened = open_case(ingest_case(case, IngestConfig(spacing_mm=None), LocalStore(tmp_path / "s")).path)
    for array, path in ((opened.image, image), (opened.label, label)):
        expected = nib.as_closest_canonical(nib.load(path))
        np.testing.assert_array_equal(read_volume(array), np.asanyarray(expected.dataobj))
        np.testing.assert_allclose(opened.grid.affine, expected.affine, atol=1e-6)


def test_output_is_what_this_version_promises(build: SimpleNamespace, tmp_path: Path) -> None:
    x, y, z = np.meshgrid(np.arange(37), np.arange(29), np.arange(23), indexing="ij")
    image = ((7 * x * x + 13 * y * z + 29 * z) % 2400 - 1000).astype(np.int16)
    label = ((x + 2 * y + 3 * z) // 20 % 3).astype(np.uint8)
    turn = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])
    parts = (
        build.zipped(build.nifti(part, build.affine("PIR", (0.75, 1.5, 2.25), turn)))
        for part in (image, label)
    )
    opened = open_case(
        ingest_case(build.case(tmp_path, *parts), IngestConfig(), LocalStore(tmp_path / "s")).path
    )
    digest = hashlib.sha256(np.round(opened.grid.affine, 6).tobytes())
    for array in (opened.image[:], opened.label[:], *(opened.positions[c] for c in range(3))):
        digest.update(np.ascontiguousarray(array).tobytes())
    assert digest.hexdigest() == GOLDEN, "output changed: bump VERSION (INGEST in artifacts/stages.py)"


GOLDEN = "27a7aa08c82c3e20c92b52be8c8867b911da22b3ee4461868de2668fd3106b05"
