"""What an artifact is: a key of all that decides its content, and no damage to it without a name."""

import contextlib
import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from store_contract import PLAIN, make, recipe

from liverseg_core.artifacts import artifact
from liverseg_core.artifacts.artifact import Recipe, Stage, load, verify
from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.artifacts.produce import produce
from liverseg_core.artifacts.stages import EVALUATE, TRAIN
from liverseg_core.errors import LiversegError
from liverseg_core.provenance import library_versions


def test_key_changes_with_everything_that_decides_the_content() -> None:
    keys = {
        one.key
        for one in (
            recipe(),
            recipe(a=1),
            recipe(a="1"),
            recipe(b=1),
            Recipe(PLAIN, {}, {"input": "y"}),
            Recipe(PLAIN, {}, {}),
            recipe(Stage("plain", "plains", version=2)),
            recipe(Stage("other", "plains", version=1)),
            recipe(Stage("plain", "plains", version=1, libraries=("numpy",))),
        )
    }
    assert len(keys) == 9
    assert recipe(a=1, b=2).key == recipe(b=2, a=1).key
    assert recipe(Stage("plain", "elsewhere", version=1, resumable=True)).key == recipe().key


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        (TRAIN, "a007ffac644ac1821bdf9adaffcbb388"),
        (replace(EVALUATE, version=4), "2ede7b5badc400a2ef2702262b7d442c"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_was_trained_in_monais_networks_keeps_its_key(
    stage: Stage, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of commit 0518d80, the last with networks of MONAI, under the libraries that it ran with."""
    then = {"torch": "2.13.0", "torchio": "1.2.1"}
    monkeypatch.setattr(artifact, "library_versions", lambda names: {name: then[name] for name in names})
    assert Recipe(stage, {"seed": 0}, {"data": "d" * 32}).key == key


def test_a_damaged_manifest_is_named(build: SimpleNamespace, tmp_path: Path) -> None:
    made = produce(LocalStore(tmp_path), recipe(), make)
    path = made.path / "manifest.json"
    whole = path.read_bytes()
    generator = random.Random(0)
    damaged = [b"", b"null", b"[]", b"{}", b"\xff", whole[:-2], whole.replace(b"42", b"43"), b"[" * 100_000]
    for _ in range(200):
        flipped = bytearray(whole)
        flipped[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        same = False
        with contextlib.suppress(ValueError):
            same = json.loads(flipped) == json.loads(whole)
        damaged += [] if same else [bytes(flipped)]
    for content in damaged:
        path.write_bytes(content)
        assert build.refusal(load, made.path) == "LS501"
        assert build.refusal(produce, LocalStore(tmp_path), recipe(), make) == "LS501"
    path.write_bytes(whole)
    moved = made.path.rename(made.path.with_name("another key"))
    assert build.refusal(load, moved) == "LS501", "a manifest speaks of its own folder only"
    path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("name", "trouble"),
    [
        ("missing", "a.bin is missing"),
        ("changed", "b/c.bin does not match"),
        ("longer", "a.bin does not match"),
        ("extra", "b/new is not in the manifest"),
    ],
)
def test_verify_names_the_file(tmp_path: Path, name: str, trouble: str) -> None:
    made = produce(LocalStore(tmp_path), recipe(), make)
    if name == "missing":
        (made.path / "a.bin").unlink()
    elif name == "changed":
        (made.path / "b" / "c.bin").write_bytes(b"d")
    elif name == "longer":
        (made.path / "a.bin").write_bytes(b"a" * 5001)
    else:
        (made.path / "b" / "new").write_bytes(b"")
    with pytest.raises(LiversegError, match=f"LS502.*{trouble}"):
        verify(made)


def test_large_files_are_only_sized_when_asked(tmp_path: Path) -> None:
    made = produce(LocalStore(tmp_path), recipe(), make)
    (made.path / "a.bin").write_bytes(b"b" * 5000)
    verify(made, read_up_to=4999)
    with pytest.raises(LiversegError, match="LS502"):
        verify(made, read_up_to=5000)
    assert library_versions(("numpy",)).keys() == {"numpy"}
