"""docs/cluster.md as an operator types it, with podman for an engine: up, a flow, everything lost, restored.

Not part of `make test`, for its image takes many minutes: `pytest -m containers`. The images that Dockerfile
and Compose start from are stand-ins, of Debian's packages; so nothing comes from a registry of images.
"""

import json
import os
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from liverseg_core.phantom.dataset import PhantomSpec, write_phantom_tar

pytestmark = [pytest.mark.containers, pytest.mark.timeout(7200)]

ROOT = Path(__file__).parents[2]
PODMAN = Path(__file__).parent / "podman"
NEEDED = ("podman", "podman-compose", "runc", "debootstrap", "aws", "openssl")
QUICK = {
    "LIVERSEG_INGEST__SPACING_MM": "[2, 2, 2]",
    "LIVERSEG_TRAIN__STEPS": "20",
    "LIVERSEG_SPLIT__VALIDATION": "2",
}
PATIENCE_S = 1800


def blocks() -> list[str]:
    """What the page has people type, block by block."""
    return re.findall(r"(?ms)^```sh\n(.*?)^```", (ROOT / "docs" / "cluster.md").read_text())


class Shell:
    """A shell in the folder infra/ that keeps its variables between two calls."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment

    def __call__(self, lines: str) -> str:
        """What these lines print; the first that fails ends them."""
        keep = self.folder / "environment"
        done = subprocess.run(
            ["bash", "-euc", f"{lines}\nenv -0 > {keep}"],
            cwd=self.environment["PWD"],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        if done.returncode:
            pytest.fail("\n".join([lines, done.stdout[-5000:], done.stderr[-5000:]]))
        pairs = (pair.partition("=") for pair in keep.read_text().split("\0") if pair)
        self.environment = {name: value for name, _, value in pairs}
        return done.stdout


def stand_ins(folder: Path, environment: dict[str, str], bare_debian: Callable[[Path], Path]) -> None:
    """The images that Dockerfile and Compose name, unless they were made before."""

    def podman(*arguments: object) -> None:
        subprocess.run(["podman", *map(str, arguments)], env=environment, check=True, capture_output=True)

    names = ["python:3.11-slim-bookworm", "debian:bookworm-slim", "postgres:17-bookworm"]
    python, debian, postgres = (f"docker.io/library/{name}" for name in names)
    there = subprocess.run(["podman", "image", "exists", postgres], env=environment, check=False)
    if there.returncode == 0:
        return
    root = bare_debian(folder / "debian")
    if wheels := environment.get("PIP_FIND_LINKS"):
        (root / "etc" / "pip.conf").write_text(f"[global]\nfind-links = {wheels}\n")
    subprocess.run(["tar", "-C", root, "-cf", folder / "debian.tar", "."], check=True)
    podman("import", folder / "debian.tar", debian)
    podman("tag", debian, python)
    podman("build", "--isolation", "chroot", "--tag", postgres, PODMAN)
    shutil.rmtree(root)


def engine_settings(path: Path) -> Path:
    """Limits that this user may set, a runtime for any control groups, and the wheels that pip finds here."""
    wheels = os.environ.get("PIP_FIND_LINKS")
    files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 65536)
    lines = [
        "[containers]",
        f'default_ulimits = ["nofile={files}", "nproc=16384"]',
        f"volumes = {json.dumps([f'{wheels}:{wheels}:ro'] if wheels else [])}",
        "[engine]",
        'runtime = "runc"',
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def shell(
    tmp_path: Path, copy_checkout: Callable[[Path], Path], bare_debian: Callable[[Path], Path]
) -> Iterator[Shell]:
    """A checkout, a phantom, and an engine; afterwards its containers and volumes are gone."""
    if os.getuid() != 0 or not all(map(shutil.which, NEEDED)):
        pytest.skip(f"needs root, and {', '.join(NEEDED)}")
    infra = copy_checkout(tmp_path / "main") / "infra"
    write_phantom_tar(infra / "Task03_Liver.tar", PhantomSpec(cases=6, unlabelled=0, size=(64, 64, 40)))
    services = {"cpu-worker": {"environment": QUICK}}
    (infra / "quick.yaml").write_text(yaml.safe_dump({"services": services}))
    told = {
        "CONTAINERS_CONF": str(engine_settings(tmp_path / "containers.conf")),
        "BUILDAH_ISOLATION": "chroot",
        "COMPOSE_FILE": "compose.yaml:quick.yaml",
        "PATH": f"{PODMAN}:{os.environ['PATH']}",
        "PWD": str(infra.parent),
    }
    environment = dict(os.environ) | told
    stand_ins(tmp_path, environment, bare_debian)
    found = Shell(tmp_path, environment)
    yield found
    subprocess.run(["docker", "compose", "down", "--volumes"], cwd=infra, env=environment, check=False)


def versions(shell: Shell) -> str:
    """The registered versions, once MLflow answers."""
    listed = "docker compose exec cpu-worker with-secrets liverseg models list --json"
    return shell(f"until {listed}; do sleep 3; done")


def await_champion(shell: Shell) -> None:
    """Until a version is registered."""
    deadline = time.monotonic() + PATIENCE_S
    while "champion" not in versions(shell):
        assert time.monotonic() < deadline, shell("docker compose logs cpu-worker")[-6000:]
        time.sleep(3)


def test_the_page(shell: Shell) -> None:
    secrets, up, use, backup, restore, upgrade = blocks()
    shell(secrets)
    shell("sed -i 's/^LIVERSEG_CONFIG=.*/LIVERSEG_CONFIG=phantom/; s/_MEMORY=.*/_MEMORY=1g/' .env")
    shell(up)
    assert "http://mlflow:5000" in shell(use)
    await_champion(shell)
    shell(backup)
    shell("docker compose down --volumes\ndocker compose up --detach --wait")
    assert "champion" not in versions(shell)
    shell(restore)
    assert "champion" in versions(shell)
    shell(upgrade)
    assert "champion" in versions(shell)
