"""Bad inputs through the real command line: a coded line, its class's exit code, nothing half-written."""

import contextlib
import fcntl
import gzip
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytestmark = pytest.mark.slow

Run = Callable[..., Any]
LINE = re.compile(r"(LS\d{3}): .+\. Allowed: .+\. .+[.?]")
ROOT = "Task03_Liver"


def check(ended: Any, code: str, exit_code: int, store: Path | None = None) -> None:
    """One line, the last one; no traceback; every artifact complete or in its staging folder."""
    assert ended.code == exit_code, ended.err
    found = LINE.fullmatch(ended.error)
    assert found, ended.err
    assert found[1] == code, ended.error
    assert "Traceback" not in ended.err
    assert len(re.findall(r"^LS\d{3}:", ended.err, re.MULTILINE)) == 1, ended.err
    assert ended.out == ""
    if store is not None:
        half_written(store)


def half_written(store: Path) -> None:
    """Fail on an artifact's folder that is in its place without a manifest."""
    folders = [path for path in store.glob("*/*") if path.is_dir() and path.parent.name in ARTIFACTS]
    bare = [
        path for path in folders if not path.name.startswith(".") and not (path / "manifest.json").exists()
    ]
    assert not bare


ARTIFACTS = ("cases", "datasets", "models", "evaluations", "registrations", "reports")


def rewritten(source: Path, target: Path, changes: Mapping[str, bytes | None]) -> Path:
    """A copy of a tar with members replaced, or left out where the change is None."""
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for member in old:
            name = member.name.removeprefix(f"{ROOT}/")
            data = changes[name] if name in changes else (old.extractfile(member) or io.BytesIO()).read()
            if data is not None:
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))
    return target


def member(source: Path, name: str) -> bytes:
    with tarfile.open(source) as archive:
        file = archive.extractfile(f"{ROOT}/{name}")
        assert file is not None
        return file.read()


def moved(packed: bytes, by_mm: float) -> bytes:
    """The same NIfTI file, that far along x."""
    image = nib.Nifti1Image.from_bytes(gzip.decompress(packed))
    affine = image.affine.copy()
    affine[0, 3] += by_mm
    there = nib.Nifti1Image(np.asarray(image.dataobj), affine, image.header)
    there.set_sform(affine, 1)
    there.set_qform(affine, 1)
    return gzip.compress(there.to_bytes(), mtime=0)


@pytest.fixture(scope="module")
def sources(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Everything that is no dataset, by name."""
    folder = tmp_path_factory.mktemp("sources")
    names = "missing truncated noise web-page empty gzipped no-listing bad-listing absent other-organ folder"
    made = {name: folder / f"{name}.tar" for name in names.split()}
    whole = phantom.read_bytes()
    made["truncated"].write_bytes(whole[: len(whole) // 2])
    made["noise"].write_bytes(np.random.default_rng(0).bytes(100_000))
    made["web-page"].write_bytes(b"<!DOCTYPE html><title>404</title>" * 100)
    made["empty"].write_bytes(b"")
    made["gzipped"].write_bytes(gzip.compress(whole))
    rewritten(phantom, made["no-listing"], {"dataset.json": None})
    rewritten(phantom, made["bad-listing"], {"dataset.json": b'{"name": "x"'})
    rewritten(phantom, made["absent"], {"imagesTr/liver_2.nii.gz": None})
    listing = json.loads(member(phantom, "dataset.json"))
    other = {**listing, "labels": {"0": "background", "1": "spleen"}}
    rewritten(phantom, made["other-organ"], {"dataset.json": json.dumps(other).encode()})
    made["folder"].mkdir()
    return made


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("missing", "LS301"),
        ("truncated", "LS303"),
        ("noise", "LS302"),
        ("web-page", "LS302"),
        ("empty", "LS302"),
        ("gzipped", "LS302"),
        ("no-listing", "LS305"),
        ("folder", "LS305"),
        ("bad-listing", "LS306"),
        ("other-organ", "LS306"),
        ("absent", "LS307"),
    ],
)
def test_what_is_no_dataset(
    liverseg: Run, sources: dict[str, Path], tmp_path: Path, name: str, code: str
) -> None:
    """Ingest says so and makes no store; verify says the same."""
    store = tmp_path / "store"
    check(liverseg("ingest", sources[name], "--store", store), code, 3)
    assert not store.exists()
    check(liverseg("verify", sources[name]), code, 3)


def test_the_flow_says_the_same(liverseg: Run, sources: dict[str, Path], tmp_path: Path) -> None:
    """Prefect around it changes nothing that a person sees; `--debug` shows where it came from."""
    command = ["run", sources["truncated"], "--store", tmp_path / "store"]
    check(liverseg(*command), "LS303", 3)
    shown = liverseg(*command, "--debug")
    assert shown.code == 3
    assert "Traceback (most recent call last)" in shown.err
    assert shown.error.startswith("LS303: ")


def test_a_wrong_md5(liverseg: Run, phantom: Path, tmp_path: Path) -> None:
    """Checked before anything is written, by ingest and by verify."""
    wrong, store = "0f" * 16, tmp_path / "store"
    check(liverseg("ingest", phantom, "--store", store, "--set", f"source_md5={wrong}"), "LS304", 3)
    check(liverseg("verify", phantom, "--md5", wrong), "LS304", 3)
    assert not store.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--set", "train.lerning_rate=1"], "LS201", "Did you mean train.learning_rate?"),
        (["--set", "train.steps=0"], "LS201", "train.steps = 0"),
        (["--set", "train.steps=many"], "LS201", "train.steps = 'many'"),
        (["--set", "train.network.name=transformer"], "LS201", "train.network.name"),
        (["--set", "train.steps"], "LS201", "key=value"),
        (["--config", "nonesuch"], "LS202", "phantom"),
        (["--store", "/dev/null"], "LS203", "/dev/null"),
        (["--store", "/proc/nowhere"], "LS203", "/proc/nowhere"),
    ],
)
def test_settings_that_cannot_be(
    liverseg: Run, phantom: Path, tmp_path: Path, arguments: list[str], code: str, says: str
) -> None:
    """Named before any work begins, with what is allowed."""
    store = [] if "--store" in arguments else ["--store", str(tmp_path / "store")]
    ended = liverseg("ingest", phantom, "--workers", 0, *arguments, *store)
    check(ended, code, 2)
    assert says in ended.error
    assert not (tmp_path / "store").exists()


@pytest.fixture
def permitted(command_environment: dict[str, str]) -> Run:
    """A function that runs `liverseg` as someone to whom permissions apply, even where root runs this."""
    as_anyone = [] if os.geteuid() else ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]

    def call(*arguments: object) -> SimpleNamespace:
        command = [*as_anyone, sys.executable, "-m", "flows.cli", *map(str, arguments)]
        done = subprocess.run(
            command, check=False, env=command_environment, capture_output=True, text=True, timeout=600
        )
        last = done.stderr.splitlines()[-1]
        return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr, error=last)

    return call


def test_a_folder_of_someone_else(permitted: Run, phantom: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    check(permitted("ingest", phantom, "--store", tmp_path / "store", "--workers", 0), "LS203", 2)


@pytest.mark.parametrize("closed", ["the folder", "the database"])
def test_a_store_that_may_only_be_read(permitted: Run, stored: Any, tmp_path: Path, closed: str) -> None:
    """Said at once and in one line, without what MLflow and SQLAlchemy print of it."""
    store = shutil.copytree(stored.path, tmp_path / "store")
    store.chmod(0o500) if closed == "the folder" else (store / "mlflow.db").chmod(0o400)
    settings = ["--config", stored.config, "--set", "train.steps=2"]
    ended = permitted("run", stored.source, "--store", store, *settings)
    check(ended, "LS203", 2, store)
    assert "INSERT" not in ended.err
    store.chmod(0o700)


def test_bad_cases_are_set_aside_and_the_rest_goes_on(
    liverseg: Run, phantom: Path, tiny: Path, tmp_path: Path
) -> None:
    """A damaged scan and a label that lies elsewhere cost their own cases; the flow ends with exit code 8."""
    scan, label = "imagesTr/liver_1.nii.gz", "labelsTr/liver_4.nii.gz"
    packed = bytearray(member(phantom, scan))
    packed[len(packed) // 2] ^= 4
    changes = {scan: bytes(packed), label: moved(member(phantom, label), 30)}
    source, store = rewritten(phantom, tmp_path / "bad.tar", changes), tmp_path / "store"
    settings = ["--config", tiny, "--set", "train.steps=2", "--set", "split.validation=1"]
    ended = liverseg("run", source, *settings, "--store", store, "--json")
    assert ended.code == 8, ended.err
    assert "Traceback" not in ended.err
    assert {(one["case"], one["code"]) for one in ended.data["ingest"]["quarantined"]} == {
        ("liver_1", "LS311"),
        ("liver_4", "LS321"),
    }
    assert len(ended.data["ingest"]["cases"]) == 5
    assert len(re.findall(r"^Quarantined liver_[14]: LS3\d\d: .+$", ended.err, re.MULTILINE)) == 2
    assert ended.data["register"]["version"] == 1
    half_written(store)
    again = liverseg("ingest", source, *settings, "--store", store, "--workers", 0, "--json")
    assert (again.code, again.data["made"], len(again.data["quarantined"])) == (8, 0, 2)
    report = liverseg("verify", source, "--workers", 0, "--json")
    assert report.code == 3
    problems = {one["case"]: one["problem"] for one in report.data["cases"] if one["problem"]}
    assert problems.keys() == {"liver_1", "liver_4"}


@contextlib.contextmanager
def dask_cluster(port: int, workers: int, memory: str) -> Iterator[str]:
    """A scheduler and workers in processes of their own, as on a cluster."""
    address, module = f"tcp://127.0.0.1:{port}", [sys.executable, "-m"]
    here = ["--host", "127.0.0.1", "--no-dashboard"]
    worker = [
        *module,
        "distributed.cli.dask_worker",
        address,
        *here,
        "--nthreads",
        "1",
        "--memory-limit",
        memory,
    ]
    commands = [[*module, "distributed.cli.dask_scheduler", "--port", str(port), *here], *[worker] * workers]
    processes = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for command in commands]
    try:
        yield address
    finally:
        for process in reversed(processes):  # workers first, and each with its nanny's leave
            process.terminate()
            process.wait()


def test_a_giant_among_small_ones(
    liverseg: Run, phantom: Path, tiny: Path, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """A case that no worker has memory for is set aside by name; the others are made."""
    affine = np.diag([2.0, 2, 2, 1])[[0, 2, 1, 3]]  # stacked along y: it can't stream
    giant = nib.Nifti1Image(np.zeros((400, 400, 500), np.int16), affine)
    changes = {"imagesTs/liver_1000.nii.gz": gzip.compress(giant.to_bytes(), 1, mtime=0)}
    source, store = rewritten(phantom, tmp_path / "giant.tar", changes), tmp_path / "store"
    with dask_cluster(free_port(), 2, "500MB") as address:
        command = ["--config", tiny, "--store", store, "--dask", address, "--json"]
        ended = liverseg("ingest", source, *command)
    assert ended.code == 8, ended.err
    (aside,) = ended.data["quarantined"]
    assert (aside["case"], aside["code"]) == ("liver_1000", "LS703")
    assert re.search(r"liver_1000 needs \d+ MB .* a task has 150 MB", aside["reason"])
    assert len(ended.data["cases"]) == 6
    half_written(store)


def test_nothing_but_bad_cases(liverseg: Run, phantom: Path, tmp_path: Path) -> None:
    """An error, since there is nothing to go on with."""
    names = [f"imagesTr/liver_{number}.nii.gz" for number in range(6)] + ["imagesTs/liver_1000.nii.gz"]
    source = rewritten(phantom, tmp_path / "bad.tar", dict.fromkeys(names, b"version https://git-lfs\n"))
    ended = liverseg("ingest", source, "--store", tmp_path / "store", "--workers", 0)
    check(ended, "LS335", 3, tmp_path / "store")
    assert "git-lfs" in ended.error


def test_an_artifact_that_another_run_is_making(
    liverseg: Run, ingested: Path, tiny: Path, tmp_path: Path
) -> None:
    """Refused while its lock is held, whoever holds it; nothing of it is touched."""
    store = Path(shutil.copytree(ingested, tmp_path / "store"))
    command = ["train", "--config", tiny, "--store", store, "--set", "train.steps=2"]
    key = liverseg(*command, "--json").ok().data["key"]
    (store / "models" / key).rename(tmp_path / "model")
    with (store / "models" / f".staging-{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 1 on elsewhere")
        lock.flush()
        ended = liverseg(*command)
    check(ended, "LS601", 6, store)
    assert "process 1 on elsewhere" in ended.error
    assert liverseg(*command, "--json").ok().data["key"] == key


@pytest.mark.parametrize(
    "reference", ["models:/liverseg@nobody", "models:/liverseg/99", "models:/other/1", "runs:/0", "no/folder"]
)
def test_a_model_that_is_not_there(liverseg: Run, stored: Any, tmp_path: Path, reference: str) -> None:
    """Whatever way it is named."""
    command = ["predict", "scan.nii.gz", "--model", reference, "--store", stored.path]
    check(liverseg(*command, "-o", tmp_path / "label.nii.gz"), "LS291", 2)


@pytest.mark.parametrize(("content", "code"), [(None, "LS301"), (b"<html>", "LS312"), (b"", "LS312")])
def test_a_scan_that_is_none(
    liverseg: Run, stored: Any, tmp_path: Path, content: bytes | None, code: str
) -> None:
    """Nothing is written where the label would have gone."""
    scan, out = tmp_path / "scan.nii.gz", tmp_path / "label.nii.gz"
    if content is not None:
        scan.write_bytes(content)
    (model,) = list(stored.path.glob("models/*/model.json"))[:1]
    check(liverseg("predict", scan, "--model", model.parent, "-o", out), code, 3)
    assert not out.exists()


@pytest.mark.parametrize("out", ["label.nii", "/dev/null", "/proc/nowhere/label.nii.gz"])
def test_a_label_that_cannot_be_written(
    liverseg: Run, stored: Any, phantom: Path, tmp_path: Path, out: str
) -> None:
    """Nor half of it."""
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes(member(phantom, "imagesTr/liver_0.nii.gz"))
    (model,) = list(stored.path.glob("models/*/model.json"))[:1]
    check(liverseg("predict", scan, "--model", model.parent, "-o", tmp_path / out), "LS208", 2)
    assert [*tmp_path.iterdir()] == [scan]


def test_looking_makes_nothing(liverseg: Run, tmp_path: Path) -> None:
    """Verbs that only read leave no store behind where there was none."""
    store = tmp_path / "[bold]nowhere"
    assert f"Store {store}" in liverseg("status", "--store", store).ok().err
    assert liverseg("models", "list", "--store", store, "--json").ok().data == []
    check(
        liverseg("predict", "x.nii.gz", "--model", "models:/a@b", "--store", store, "-o", "y.nii.gz"),
        "LS291",
        2,
    )
    assert not store.exists()


def test_a_name_that_would_steer_the_terminal(liverseg: Run, phantom: Path, tmp_path: Path) -> None:
    """Markup and escape sequences from a dataset are shown, not obeyed."""
    listing = {**json.loads(member(phantom, "dataset.json")), "name": "[/b]\x1b[31mred\nLS999: x"}
    source = rewritten(phantom, tmp_path / "x.tar", {"dataset.json": json.dumps(listing).encode()})
    ended = liverseg("verify", source, "--workers", 0).ok()
    assert "[/b]\ufffd[31mred\ufffdLS999: x: 7 cases" in ended.err
    assert "\x1b" not in ended.err + ended.out


def test_damaged_parts_of_the_store_are_named(
    liverseg: Run, stored: Any, tmp_path: Path, finished_at: Callable[[Path], dict[str, int]]
) -> None:
    """A flipped bit in a case, in a model, in a manifest: exit code 5 before it is used, with its path."""
    store = Path(shutil.copytree(stored.path, tmp_path / "store"))
    before = finished_at(store)
    settings = ["--config", stored.config, "--store", store]
    data = liverseg("train", *settings, "--json").ok().data
    weights = store / "models" / data["key"] / "model.safetensors"

    with damaged(weights):
        ended = liverseg("evaluate", *settings, "--set", "evaluate.overlap=0.3")
        check(ended, "LS502", 5, store)
        assert str(weights) in ended.error
    for chunk in store.glob("cases/*/image.ome.zarr/0/c/0/0/0"):
        chunk.write_bytes(flipped(chunk.read_bytes()))
    ended = liverseg("train", *settings, "--set", "train.steps=5")
    check(ended, ended.error[:5], 5, store)
    assert ended.error[:5] in {"LS502", "LS504"}
    assert "/cases/" in ended.error
    manifest = store / "models" / data["key"] / "manifest.json"
    with damaged(manifest):
        ended = liverseg("train", *settings)
        check(ended, "LS501", 5, store)
        assert str(manifest) in ended.error
    assert finished_at(store).keys() == before.keys()


class damaged:  # noqa: N801  (reads as a statement)
    """A file with one bit flipped in its middle, for a while."""

    def __init__(self, path: Path) -> None:
        self.path, self.content = path, path.read_bytes()

    def __enter__(self) -> None:
        self.path.write_bytes(flipped(self.content))

    def __exit__(self, *_: object) -> None:
        self.path.write_bytes(self.content)


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_a_tracking_server_that_is_away(liverseg: Run, ingested: Path, tiny: Path, tmp_path: Path) -> None:
    """Said before training begins, after the wait that was asked for, and with the address."""
    store = Path(shutil.copytree(ingested, tmp_path / "store"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    settings = ["--config", tiny, "--store", store, "--set", f"register.tracking_uri={uri}"]
    ended = liverseg("train", *settings, "--set", "register.patience_s=3")
    check(ended, "LS401", 4, store)
    assert uri in ended.error
    assert not list(store.glob("models/.staging-*/checkpoints"))
