"""The image's steps on a bare Debian, by buildah, which needs no daemon: the wheel, and the object store.

Left out is the stage that installs every dependency: minutes, and gigabytes.
"""

import contextlib
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.whole, pytest.mark.timeout(4000)]

ROOT = Path(__file__).parents[2]
FILE = "infra/Dockerfile"


@dataclass(frozen=True)
class Buildah:
    """Buildah with a storage of its own."""

    storage: tuple[str, ...]

    def __call__(self, *arguments: object) -> str:
        """What a command prints."""
        command = ["buildah", *self.storage, *map(str, arguments)]
        environment = os.environ | {"BUILDAH_ISOLATION": "chroot"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (arguments, done.stdout[-3000:], done.stderr[-3000:])
        return done.stdout.strip()


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """Buildah; afterwards its containers and images are gone."""
    if os.getuid() != 0 or not all(map(shutil.which, ("buildah", "debootstrap"))):
        pytest.skip("needs root, buildah and debootstrap")
    folder = tmp_path_factory.mktemp("images")
    found = Buildah(("--root", str(folder / "storage"), "--runroot", str(folder / "run")))
    yield found
    found("rm", "--all")
    found("rmi", "--all", "--force")


@pytest.fixture(scope="module")
def debian(
    buildah: Buildah, bare_debian: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The id of an image of the smallest Debian 12 with Python."""
    root = bare_debian(tmp_path_factory.mktemp("debian") / "root")
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, root, "/")
    image = buildah("commit", "--quiet", container)
    shutil.rmtree(root)
    return image


@pytest.fixture
def build(buildah: Buildah, debian: str) -> Callable[[str], str]:
    """A function that builds the Dockerfile up to a stage, and returns a container of it."""

    def call(stage: str) -> str:
        bases = ["--build-arg", f"BASE={debian}", "--build-arg", f"SYSTEM={debian}"]
        return buildah("from", buildah("bud", "--quiet", *bases, "--target", stage, "--file", FILE, "."))

    return call


def test_the_wheel(build: Callable[[str], str], buildah: Buildah) -> None:
    container = build("wheel")
    (wheel,) = buildah("run", container, "--", "sh", "-c", "ls /wheels/*.whl").split()
    listed = buildah("run", container, "--", "python3", "-m", "zipfile", "--list", wheel)
    for part in (
        "liverseg_core/config.py",
        "tasks/registry/publish.py",
        "flows/cli.py",
        "flows/recipes/unet.yaml",
    ):
        assert part in listed
    assert "torch>=" in buildah("run", container, "--", "cat", "/wheels/requirements.txt")


def test_the_object_store(
    build: Callable[[str], str],
    buildah: Buildah,
    free_port: Callable[[], int],
    s3_client: Callable[[str, str, str], Any],
    tmp_path: Path,
) -> None:
    """It starts as the image says, as its own user, and takes an object."""
    container, port = build("s3"), free_port()
    assert buildah("inspect", "--format", "{{.OCIv1.Config.User}}", container) == "swift"
    (tmp_path / "s3-key").write_text("testing")
    (tmp_path / "s3-key").chmod(0o644)
    tmp_path.chmod(0o755)
    told = ["--env", "S3_HOST=127.0.0.1", "--env", f"S3_PORT={port}", "--volume", f"{tmp_path}:/run/secrets"]
    command = ["buildah", *buildah.storage, "run", *told, container, "--", "/etc/swift/start"]
    with (tmp_path / "s3.log").open("wb") as log:
        environment = os.environ | {"BUILDAH_ISOLATION": "chroot"}
        server = psutil.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 600
        while True:
            try:
                urllib.request.urlopen(f"{url}/healthcheck", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "s3.log").read_text()[-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.2)
        client = s3_client(url, "liverseg:store", "testing")
        client.create_bucket(Bucket="scans")
        client.put_object(Bucket="scans", Key="k", Body=b"content")
        assert client.get_object(Bucket="scans", Key="k", Range="bytes=3-5")["Body"].read() == b"ten"
    finally:
        everything = [server, *server.children(recursive=True)]
        for process in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(everything, timeout=30)
