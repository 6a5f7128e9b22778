"""The whole way through the real command line: from a tar to a registered model, and what a rerun does."""

import json
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytestmark = pytest.mark.slow

Run = Callable[..., Any]
STAGES = ("ingest", "split", "train", "evaluate", "register", "report")
HEAVY = {"torch", "mlflow", "distributed", "torchio", "numba", "zarr", "nibabel", "matplotlib", "av"}
LINE = re.compile(r"(?P<stage>\w+) +\d+\.\d s  (?P<cached>Cached  )?\S.*")
DRIVER = """
import atexit, json, os, sys
from flows.cli import main
names = lambda: sorted({name.partition(".")[0] for name in sys.modules})
atexit.register(lambda: open(os.environ["MODULES"], "w").write(json.dumps(names())))
main()
"""


def cached(err: str) -> dict[str, bool]:
    """Stage → whether its line says that it was found."""
    lines = [LINE.fullmatch(line) for line in err.splitlines()]
    return {found["stage"]: bool(found["cached"]) for found in lines if found}


def names(cases: list[dict[str, str]]) -> set[str]:
    return {case["case"] for case in cases}


def test_a_tar_becomes_a_registered_model(stored: Any) -> None:
    """One command: Dice on stdout, a line a stage, a version, pictures and a report that are there."""
    rows = re.findall(r"│ ([a-z][^│]*?) *│ +([\d.]+|–) │", stored.ended.out)
    dice = dict(rows)
    assert list(dice) == ["liver with tumour", "liver without tumour", "tumour"]
    assert 0.2 < float(dice["liver with tumour"]) <= 1  # it was trained for a second: bad, not random
    assert cached(stored.ended.err) == dict.fromkeys(STAGES, False)
    said = stored.ended.err.splitlines()
    assert len(said) == len(STAGES) + 3
    assert said[-3] == "Registered liverseg version 1 (candidate, champion): champion: there was none"
    pictures = Path(said[-2].removeprefix("Pictures").strip())
    shown = sorted(pictures.glob("*.png"))
    assert len(shown) == 3, "two cases and the plot"
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in shown)
    assert list(stored.path.glob("mlflow-artifacts/**/learning_curves.png"))
    page = Path(said[-1].removeprefix("Report").strip())
    assert "liverseg version 1" in page.read_text()
    (logged,) = stored.path.glob("mlflow-artifacts/**/report/report.html")
    assert logged.read_bytes() == page.read_bytes()


def test_a_rerun_finds_everything_and_imports_nothing_heavy(
    stored: Any,
    finished_at: Callable[[Path], dict[str, int]],
    command_environment: dict[str, str],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """Every stage says Cached, no artifact is touched, no library that takes seconds is imported and, where
    no Prefect API is configured, none is started.
    """
    before = finished_at(stored.path)
    modules = tmp_path / "modules.json"
    arguments = ["run", stored.source, "--config", stored.config, "--store", stored.path]
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-P", "-c", DRIVER, *map(str, arguments)],
        env=command_environment
        | {"MODULES": str(modules), "PREFECT_API_URL": "", "PREFECT_HOME": str(tmp_path / "prefect")},
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    record_property("cached_rerun_s", round(time.monotonic() - begun, 2))
    assert done.returncode == 0, done.stderr
    assert cached(done.stderr) == dict.fromkeys(STAGES, True)
    assert "liver with tumour" in done.stdout
    assert finished_at(stored.path) == before
    assert not list(tmp_path.glob("prefect/liverseg/*"))
    assert not HEAVY & set(json.loads(modules.read_text()))


def test_a_training_setting_reruns_what_depends_on_it(
    liverseg: Run, stored: Any, finished_at: Callable[[Path], dict[str, int]]
) -> None:
    """Cases and split stay; model, evaluation, version and report are new, one each."""
    before = finished_at(stored.path)
    changed = ["--set", "train.learning_rate=0.01", "--set", "train.steps=8"]
    ended = liverseg("run", stored.source, "--config", stored.config, "--store", stored.path, *changed).ok()
    assert cached(ended.err) == {stage: stage in {"ingest", "split"} for stage in STAGES}
    after = finished_at(stored.path)
    assert {name: after[name] for name in before} == before
    assert sorted(name.partition("/")[0] for name in after.keys() - before.keys()) == [
        "evaluations",
        "models",
        "registrations",
        "reports",
    ]


def test_an_added_case_is_the_only_one_ingested(
    liverseg: Run, stored: Any, finished_at: Callable[[Path], dict[str, int]], tmp_path: Path
) -> None:
    """The frozen validation cases stay, the new one trains."""
    before = finished_at(stored.path)
    more = tmp_path / "more.tar"
    liverseg("phantom", more, "--cases", 7, "--unlabelled", 1, "--size", "64,64,40").ok()
    settings = ["--config", stored.config, "--store", stored.path]
    old = liverseg("run", stored.source, *settings, "--json").ok().data
    assert all(old[stage]["cached"] for stage in STAGES)
    new = liverseg("run", more, *settings, "--set", "train.steps=8", "--json").ok().data
    assert new["ingest"]["made"] == 1
    (added,) = names(new["ingest"]["cases"]) - names(old["ingest"]["cases"])
    assert new["split"]["validation"] == old["split"]["validation"]
    assert names(new["split"]["training"]) - names(old["split"]["training"]) == {added}
    made = finished_at(stored.path).keys() - before.keys()
    assert [name for name in made if name.startswith("cases/")] == [
        f"cases/{case['key']}" for case in new["ingest"]["cases"] if case["case"] == added
    ]
    # back to the old source, so that the store's latest cases are again the ones other tests know
    assert liverseg("ingest", stored.source, *settings, "--json").ok().data["cached"]


def test_ingest_can_be_tried_and_done_in_parts(liverseg: Run, stored: Any, tmp_path: Path) -> None:
    """`--dry-run` writes nothing; `--limit` stores the first cases, and the rest follow without them."""
    store = tmp_path / "store"
    arguments = ["ingest", stored.source, "--config", stored.config, "--store", store, "--workers", 0]
    planned = liverseg(*arguments, "--dry-run", "--json").ok().data
    assert [case["state"] for case in planned] == ["new"] * 7
    assert not store.exists()
    assert liverseg(*arguments, "--limit", 2, "--json").ok().data["made"] == 2
    planned = liverseg(*arguments, "--dry-run", "--json").ok().data
    assert [case["state"] for case in planned] == ["stored"] * 2 + ["new"] * 5
    ended = liverseg(*arguments).ok()
    assert "5 new, 2 stored before, 0 quarantined\n" in ended.err
    assert [ended.out.count(f" {case['case']} ") for case in planned] == [1] * 7  # the data report's rows


@pytest.mark.parametrize("verb", ["train", "evaluate", "register"])
def test_a_stage_by_itself_finds_what_the_flow_made(liverseg: Run, stored: Any, verb: str) -> None:
    """The single verbs and the flow agree on every key."""
    ended = liverseg(verb, "--config", stored.config, "--store", stored.path, "--json").ok()
    assert all(cached(ended.err).values())
    assert ended.data["cached"]


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        (["status"], {"store", "stages"}),
        (["info"], {"liverseg", "git_commit", "packages", "settings", "recipes", "python"}),
        (["doctor"], {"check", "ok", "found"}),
        (["models", "list"], {"name", "version", "aliases", "run_id", "tags"}),
    ],
)
def test_what_is_asked_for_as_json_is_json(
    liverseg: Run, stored: Any, verb: list[str], expected: set[str]
) -> None:
    """Standard output parses as it is, whatever else there is to say."""
    store = [] if verb == ["info"] else ["--store", stored.path]
    found = liverseg(*verb, *store, "--json").ok().data
    assert expected <= (found[0] if isinstance(found, list) else found).keys()


def test_verify_reads_every_case(liverseg: Run, stored: Any) -> None:
    """A sound dataset has no problems; macOS's `._*` members are counted, not read."""
    found = liverseg("verify", stored.source, "--workers", 0, "--json").ok().data
    assert found["problems"] == 0
    assert len(found["cases"]) == 7
    assert found["skipped"] > 0
    assert sum(case["labelled"] for case in found["cases"]) == 6


def test_score_agrees_with_the_evaluation(liverseg: Run, stored: Any, tmp_path: Path) -> None:
    """The files that evaluate wrote, against the tar's own labels, give evaluate's own numbers."""
    settings = ["--config", stored.config, "--store", stored.path]
    evaluation = liverseg("evaluate", *settings, "--json").ok().data
    reference = tmp_path / "reference"
    reference.mkdir()
    with tarfile.open(stored.source) as archive:
        for case in evaluation["cases"]:
            member = archive.extractfile(f"Task03_Liver/labelsTr/{case['case']}.nii.gz")
            assert member is not None
            (reference / f"{case['case']}.nii.gz").write_bytes(member.read())
    found = liverseg("score", Path(evaluation["path"]) / "predictions", reference, "--json").ok().data
    assert [case["case"] for case in found["cases"]] == [case["case"] for case in evaluation["cases"]]
    for ours, theirs in zip(found["cases"], evaluation["cases"], strict=True):
        for group in ("liver", "liver_only", "tumour"):
            assert ours[group]["voxels"] == theirs[group]["voxels"]
            assert ours[group]["dice"] == pytest.approx(theirs[group]["dice"], abs=1e-12)
    assert found["summary"]["liver"]["dice"] > 0


def test_predict_takes_the_champion_or_a_folder(liverseg: Run, stored: Any, tmp_path: Path) -> None:
    """Both are the same model, and on a validation case both give what evaluate gave, voxel by voxel."""
    settings = ["--config", stored.config, "--store", stored.path]
    evaluation = liverseg("evaluate", *settings, "--json").ok().data
    model = liverseg("train", *settings, "--json").ok().data
    case = evaluation["cases"][0]["case"]
    with tarfile.open(stored.source) as archive:
        for name in (case, "liver_0", "liver_1"):
            member = archive.extractfile(f"Task03_Liver/imagesTr/{name}.nii.gz")
            assert member is not None
            (tmp_path / f"{name}.nii.gz").write_bytes(member.read())
    one, several = tmp_path / "one.nii.gz", tmp_path / "several"
    folder = stored.path / "models" / model["key"]
    (found,) = (
        liverseg("predict", tmp_path / f"{case}.nii.gz", "--model", folder, "-o", one, "--json").ok().data
    )
    label, expected = (
        np.asarray(nib.load(path).dataobj)
        for path in (one, Path(evaluation["path"]) / "predictions" / f"{case}.nii.gz")
    )
    np.testing.assert_array_equal(label, expected)
    assert found["liver_ml"] == pytest.approx(evaluation["cases"][0]["liver"]["volume_ml"])

    images = sorted(tmp_path.glob("liver_*.nii.gz"))
    ended = liverseg(
        "predict", *images, "--model", "models:/liverseg@champion", "-o", several, "--store", stored.path
    ).ok()
    assert sorted(path.name for path in several.iterdir()) == [image.name for image in images]
    assert "not a medical device" in ended.err
    assert str(several / images[0].name) in ended.out, "paths are whole where nobody watches"


def test_without_arguments_there_is_help(liverseg: Run) -> None:
    """Every verb is listed, and says in its own help what it takes."""
    shown = liverseg().out
    verbs = re.findall(r"│ (\w+) {2,}[A-Z]", shown)
    assert {"phantom", "verify", "run", *STAGES, "predict", "score", "models", "status"} - {"split"} <= {
        *verbs
    }
    assert "--debug" in shown
