"""The README's commands, typed as they stand."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from liverseg_core.phantom.dataset import PhantomSpec, write_phantom_tar
from liverseg_core.sources.source import open_source

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
QUICK = {
    # the recipe's full size wants a GPU; its commands are the same at any size
    "LIVERSEG_INGEST__SPACING_MM": "[6, 6, 6]",
    "LIVERSEG_SPLIT__VALIDATION": "2",
    "LIVERSEG_SPLIT__FOLDS": "2",
    "LIVERSEG_TRAIN__STEPS": "2",
    "LIVERSEG_TRAIN__PATCH_SIZE": "[32, 32, 32]",
    "LIVERSEG_TRAIN__NETWORK__CHANNELS": "[4, 8]",
}


def shell_lines(page: str) -> Iterator[str]:
    """Every command of a page's `sh` blocks."""
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
        yield from block.splitlines()


def environment(folder: Path) -> dict[str, str]:
    own = ("PREFECT_", "MLFLOW_", "LIVERSEG_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return clean | {"PATH": f"{BIN}:{clean['PATH']}", "PREFECT_HOME": str(folder / "prefect")}


@pytest.mark.whole
@pytest.mark.timeout(4000)
def test_make_demo(
    tmp_path: Path,
    copy_checkout: Callable[[Path], Path],
    record_property: Callable[[str, object], None],
) -> None:
    """In a copy of the checkout: it learns, registers, and says where the pictures are."""
    copy = copy_checkout(tmp_path / "copy")
    (copy / ".venv").symlink_to(BIN.parent)
    command = ["make", "-o", ".venv/.installed", "demo"]
    done = subprocess.run(
        command,
        cwd=copy,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Registered liverseg version 1 (candidate, champion)" in done.stderr
    pictures = Path(re.search(r"^Pictures +(.+)$", done.stderr, re.MULTILINE).group(1))  # type: ignore[union-attr]
    assert list((copy / pictures).glob("*.png"))
    (metrics,) = copy.glob("demo/store/evaluations/*/metrics.json")
    summary = json.loads(metrics.read_text())["summary"]
    dice = {group: summary[group]["dice"] for group in ("liver", "tumour")}
    record_property("demo_dice", dice)
    assert summary["cases"] >= 6
    assert dice["liver"] >= 0.94
    assert dice["tumour"] >= 0.62


@pytest.mark.whole
def test_commands_of_use(
    liverseg: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tar = tmp_path / "Task03_Liver.tar"
    write_phantom_tar(tar, PhantomSpec(cases=5, unlabelled=1, size=(48, 48, 32)))
    case = open_source(str(tar)).cases[0]
    assert case.label is not None
    (tmp_path / "scan.nii.gz").write_bytes(case.image.read())
    (tmp_path / "reference.nii.gz").write_bytes(case.label.read())
    commands = [line for line in shell_lines("README.md") if line.startswith("liverseg ")]
    assert len(commands) >= 7
    for command in commands:
        done = liverseg(*shlex.split(command)[1:], **QUICK)
        assert done.code == 0, (command, done.out, done.err)
        assert "Traceback" not in done.err, (command, done.err)


def test_make_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in (line for line in shell_lines("README.md") if line.startswith("make ")):
        assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE), command


def test_deployment_page_is_what_the_tests_type() -> None:
    """Each line of the page is run by the deployment test and its servers, at other ports and places."""
    typed = "".join(
        (ROOT / "tests" / name).read_text()
        for name in (
            "servers.py",
            "end_to_end/test_deployment.py",
            "end_to_end/test_dask_cluster.py",
            "end_to_end/test_retrain.py",
        )
    )
    for line in shell_lines("docs/deployment.md"):
        words = [word for word in shlex.split(line) if re.fullmatch(r"-{0,2}[a-z][a-z-]+", word)]
        missing = [word for word in words if word not in typed and word != "export"]
        assert not missing, (line, missing)
