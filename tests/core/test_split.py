"""The split: stratified, the same whatever the order, frozen, and never leaking."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from liverseg_core.artifacts.artifact import Artifact
from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.cases.case_record import CaseRecord
from liverseg_core.cases.split import draw_validation, split_cases
from liverseg_core.config import SplitConfig
from liverseg_core.errors import LiversegError


def records(count: int, unlabelled: int = 0) -> list[CaseRecord]:
    """Nine of ten with tumour, one of five flagged."""
    return [
        CaseRecord(f"liver_{i}", f"key{i}", i < count, i % 10 > 0, i % 5 == 2, f"content{i}")
        for i in range(count + unlabelled)
    ]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def names(artifact: Artifact, group: str) -> list[str]:
    return [entry["case"] for entry in artifact.facts[group]]


@pytest.mark.parametrize(
    ("validation", "sizes"), [(27, (104, 27)), (0.2, (105, 26)), (1, (130, 1)), (130, (1, 130))]
)
def test_sizes(store: LocalStore, validation: float, sizes: tuple[int, int]) -> None:
    made = split_cases("d", records(131, 70), SplitConfig(validation=validation), store)
    assert (len(names(made, "training")), len(names(made, "validation"))) == sizes
    assert len(names(made, "unlabelled")) == 70
    everyone = names(made, "training") + names(made, "validation") + names(made, "unlabelled")
    assert sorted(everyone) == sorted(case.case for case in records(131, 70))


def test_strata_share_alike() -> None:
    cases = records(131)
    for validation in (27, 0.2, 0.5, 3):
        drawn = draw_validation(cases, SplitConfig(validation=validation))
        share = len(drawn) / len(cases)
        total = Counter((case.tumour, case.flagged) for case in cases)
        chosen = Counter((case.tumour, case.flagged) for case in cases if case.case in set(drawn))
        assert all(abs(chosen[stratum] - share * count) < 1 for stratum, count in total.items())


def test_order_does_not_matter_and_seed_does(tmp_path: Path) -> None:
    cases = records(40, 5)
    shuffled = [cases[i] for i in np.random.default_rng(0).permutation(len(cases))]
    first, second = (
        split_cases("d", found, SplitConfig(), LocalStore(tmp_path / str(i)))
        for i, found in enumerate([cases, shuffled])
    )
    assert first.key == second.key
    assert first.facts == second.facts
    assert draw_validation(cases, SplitConfig(seed=1)) != draw_validation(cases, SplitConfig())
    assert split_cases("d", shuffled, SplitConfig(), LocalStore(tmp_path / "0")).cached


def test_validation_is_frozen_while_data_grows(store: LocalStore) -> None:
    config = SplitConfig(validation=5)
    before = split_cases("d", records(20), config, store)
    after = split_cases("d", records(60), config, store)
    assert names(after, "validation") == names(before, "validation")
    assert len(names(after, "training")) == 55
    assert after.facts["validation_key"] == before.facts["validation_key"]
    assert after.key != before.key
    withdrawn = names(before, "validation")[0]
    fewer = split_cases("d", [case for case in records(60) if case.case != withdrawn], config, store)
    assert names(fewer, "validation") == names(before, "validation")[1:]
    other = split_cases("another dataset", records(60), config, store)
    assert len(names(other, "validation")) == 5
    assert names(split_cases("d", records(60), SplitConfig(validation=6), store), "validation") != []


def test_no_frozen_case_left(build: SimpleNamespace, tmp_path: Path, store: LocalStore) -> None:
    config = SplitConfig(validation=2)
    gone = set(names(split_cases("d", records(10), config, store), "validation"))
    rest = [case for case in records(10) if case.case not in gone]
    assert build.refusal(split_cases, "d", rest, config, LocalStore(tmp_path)) == "LS334"


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"cases": 5}'])
def test_a_damaged_frozen_list_is_named(
    build: SimpleNamespace, tmp_path: Path, store: LocalStore, content: bytes
) -> None:
    split_cases("d", records(10), SplitConfig(), store)
    (path,) = (tmp_path / "datasets").glob("validation-*.json")
    path.write_bytes(content)
    assert build.refusal(split_cases, "d", records(10), SplitConfig(), LocalStore(tmp_path)) == "LS501"


@pytest.mark.parametrize(
    ("count", "validation"), [(0, 0.2), (1, 0.2), (1, 1), (2, 0.2), (5, 5), (5, 9), (4, 0.99)]
)
def test_too_few_cases(build: SimpleNamespace, tmp_path: Path, count: int, validation: float) -> None:
    config = SplitConfig(validation=validation)
    assert build.refusal(split_cases, "d", records(count, 3), config, LocalStore(tmp_path)) == "LS331"
    assert not list(tmp_path.rglob("*.json")), "nothing was frozen"


def test_the_same_voxels_on_both_sides_are_refused(store: LocalStore) -> None:
    cases = records(20)
    frozen = names(split_cases("d", cases, SplitConfig(), store), "validation")
    twin = next(case for case in cases if case.case == frozen[0])
    copy = CaseRecord("liver_copy", "another key", True, True, False, twin.content)
    with pytest.raises(LiversegError, match=r"LS330.*liver_copy"):
        split_cases("d", [*cases, copy], SplitConfig(), store)


def test_datalist_round_trip(tmp_path: Path) -> None:
    drawn = split_cases("d", records(20, 3), SplitConfig(validation=4), LocalStore(tmp_path / "a"))
    exported = drawn.path / "dataset_0.json"
    content = json.loads(exported.read_text())
    assert content["training"][0].keys() == {"image", "label"}
    assert content["test"] == [f"imagesTs/{name}.nii.gz" for name in names(drawn, "unlabelled")]
    again = split_cases("d", records(20, 3), SplitConfig(datalist=str(exported)), LocalStore(tmp_path / "b"))
    assert again.facts == drawn.facts
    assert again.key == drawn.key
    assert not list((tmp_path / "b").rglob("validation-*")), "a datalist freezes nothing"
    part = {"training": ["x/liver_3.nii.gz", {"image": "liver_4.nii"}], "validation": ["liver_5"]}
    exported.with_name("mine.json").write_text(json.dumps(part))
    chosen = split_cases(
        "d", records(20), SplitConfig(datalist=str(exported.with_name("mine.json"))), LocalStore(tmp_path)
    )
    assert (names(chosen, "training"), names(chosen, "validation")) == (["liver_3", "liver_4"], ["liver_5"])


DATALISTS = [
    ("absent", None, "LS332"),
    ("empty", "", "LS332"),
    ("a list", "[]", "LS332"),
    ("no validation", '{"training": ["liver_1"]}', "LS332"),
    ("a number", '{"training": [1], "validation": ["liver_1"]}', "LS332"),
    ("an entry without image", '{"training": [{}], "validation": ["liver_1"]}', "LS332"),
    ("unknown case", '{"training": ["liver_1"], "validation": ["liver_99"]}', "LS332"),
    ("unlabelled case", '{"training": ["liver_1"], "validation": ["liver_20"]}', "LS332"),
    ("deeply nested", "[" * 200_000, "LS332"),
    ("nobody validates", '{"training": ["liver_1"], "validation": []}', "LS331"),
    ("a case on both sides", '{"training": ["liver_1", "liver_2"], "validation": ["liver_2"]}', "LS330"),
]


@pytest.mark.parametrize(("name", "content", "code"), DATALISTS, ids=[name for name, *_ in DATALISTS])
def test_unusable_datalists(
    build: SimpleNamespace, tmp_path: Path, name: str, content: str | None, code: str
) -> None:
    path = tmp_path / "list.json"
    if content is not None:
        path.write_text(content)
    config = SplitConfig(datalist=str(path))
    assert build.refusal(split_cases, "d", records(20, 5), config, LocalStore(tmp_path)) == code


def test_unwritable_store(build: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert (
        build.refusal(split_cases, "d", records(9), SplitConfig(), LocalStore(tmp_path / "file")) == "LS203"
    )
