"""Image, Compose and Terraform files: parsed, held against each other; what of them can run here, runs."""

import itertools
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
DOCKERFILE = (INFRA / "Dockerfile").read_text()
COMPOSE_TEXT = (INFRA / "compose.yaml").read_text()
COMPOSE = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
VARIABLE = re.compile(r"\$\{(\w+)(?::[-?]([^}]*))?\}")
SCRIPTS = [path for path in INFRA.rglob("*") if path.is_file() and path.read_text().startswith("#!")]
CLIENT = """
from flows.runners import open_runner
from liverseg_core.config import ComputeConfig
with open_runner(ComputeConfig(dask={address!r})) as runner:
    print(sorted(outcome.result for outcome in runner.map(abs, [-3, -1, 2])))
"""


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments, continuation lines joined."""
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"(?m)^#.*\n", "", DOCKERFILE))
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in joined.splitlines() if line]


def test_what_the_image_copies_exists_and_is_in_its_context() -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [said.split()[:-1] for word, said in instructions() if word == "COPY" and "--from" not in said]
    assert len(copied) > 5
    for source, flavour in itertools.product(itertools.chain(*copied), ("cpu", "gpu")):
        path = source.replace("${FLAVOUR}", flavour)
        assert (ROOT / path).exists(), path
        assert any(path == name or fnmatch(path, f"{name}/*") for name in kept), path


def test_the_image_runs_without_root_and_holds_no_secret() -> None:
    last = itertools.takewhile(lambda pair: pair[0] != "FROM", reversed(instructions()))
    said = dict(reversed(list(last)))
    assert said["USER"] == "10001:10001"
    assert json.loads(said["ENTRYPOINT"]) == ["tini", "--", "with-secrets"]
    assert json.loads(said["CMD"])[:3] == ["prefect", "worker", "start"]
    assert "HEALTHCHECK" in said
    assert not re.search(r"(?i)^(ARG|ENV) .*(password|secret|token|_key)", DOCKERFILE, re.MULTILINE)


@pytest.mark.parametrize("flavour", ["cpu", "gpu"])
def test_what_the_image_installs_is_pinned_within_its_bounds(flavour: str) -> None:
    lines = (ROOT / f"constraints-{flavour}.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*said["dependencies"], *said["optional-dependencies"].get(flavour, [])]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pins[requirement.name.lower().replace("_", "-")]), requirement
    for line in (INFRA / "services.txt").read_text().splitlines():
        name, equals, version = line.partition("==")
        assert line.startswith("#") or (equals and pins.get(name, version) == version), line


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_can_be_run(path: Path) -> None:
    assert os.access(path, os.X_OK)
    shell = path.read_text().splitlines()[0].removeprefix("#!")
    subprocess.run([shell, "-n", str(path)], check=True)


def test_commands_of_the_page_name_what_there_is() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    blocks = re.findall(r"(?ms)^```sh\n(.*?)^```", page)
    assert len(blocks) > 5
    for block in blocks:
        subprocess.run(["sh", "-n"], input=block, text=True, check=True)
        for service in re.findall(r"compose exec (?:-T )?(\S+)", block):
            assert service in SERVICES
        for path in re.findall(r"infra/(?!secrets)[\w./-]+", block):
            assert (ROOT / path).exists(), path


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of secrets as an operator makes it."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("cluster") / "secrets"
    subprocess.run([INFRA / "make-secrets", folder], check=True)
    return folder


def test_secrets_are_made_once_and_for_their_owner(secrets: Path) -> None:
    before = {path.name: path.read_bytes() for path in secrets.iterdir()}
    subprocess.run([INFRA / "make-secrets", secrets], check=True)
    assert {path.name: path.read_bytes() for path in secrets.iterdir()} == before
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert before.keys() == COMPOSE["secrets"].keys()
    assert len({*before.values()}) == len(before)
    assert min(len(content) for content in before.values()) >= 48
    assert before["prefect-auth"].startswith(b"admin:")
    assert before["s3-key"] in before["s3-credentials"]


def test_a_command_gets_its_secrets_or_does_not_start(secrets: Path) -> None:
    command = [
        str(INFRA / "with-secrets"),
        sys.executable,
        "-c",
        "import os; print(os.environ['PGPASSWORD'])",
    ]
    environment = {"SECRETS_DIR": str(secrets), "SECRETS": "PGPASSWORD=mlflow-db", "PATH": os.environ["PATH"]}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (secrets / "mlflow-db").read_text()
    environment["SECRETS"] = "PGPASSWORD=nothing"
    without = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert without.returncode != 0
    assert not without.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_checked_confined_and_on_loopback(name: str) -> None:
    service = SERVICES[name]
    assert {"image", "healthcheck"} <= service.keys()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert set(service.get("networks", [])) <= COMPOSE["networks"].keys()
    for volume in service.get("volumes", []):
        source = volume.partition(":")[0]
        assert source in COMPOSE["volumes"] or (INFRA / source).exists(), volume
    for other, how in service.get("depends_on", {}).items():
        ends = SERVICES[other]["healthcheck"] == {"disable": True}
        assert how["condition"] == ("service_completed_successfully" if ends else "service_healthy"), other


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_given_the_secrets_that_it_uses_and_no_other(name: str) -> None:
    service = SERVICES[name]
    environment = service.get("environment", {})
    used = set(re.findall(r"/run/secrets/([\w.-]+)", json.dumps(environment)))
    used |= {pair.partition("=")[2] for pair in environment.get("SECRETS", "").split()}
    of_scripts = {"postgres": {"prefect-db", "mlflow-db"}, "s3": {"s3-key"}}
    assert used | of_scripts.get(name, set()) == set(service.get("secrets", []))
    assert set(service.get("secrets", [])) <= COMPOSE["secrets"].keys()


def test_every_variable_is_explained_and_none_is_secret() -> None:
    explained = set(re.findall(r"(?m)^(\w+)=", (INFRA / ".env.example").read_text()))
    assert {name for name, _ in VARIABLE.findall(COMPOSE_TEXT)} == explained
    assert not re.search(r"(?i)password|secret|key", " ".join(explained))


def test_compose_is_valid() -> None:
    compose_spec = pytest.importorskip("compose_spec")
    merged = yaml.safe_dump(yaml.safe_load(VARIABLE.sub(lambda found: found[2] or "set", COMPOSE_TEXT)))
    assert set(compose_spec.PyCompose.from_yaml(merged).service_names()) == SERVICES.keys()


def test_terraform_names_only_what_it_makes() -> None:
    hcl2 = pytest.importorskip("hcl2")
    texts = {path.name: path.read_text() for path in (INFRA / "terraform").glob("*.tf")}
    parsed = {name: hcl2.loads(text) for name, text in texts.items()}
    every = "\n".join(texts.values())
    declared = {name.strip('"') for block in parsed["variables.tf"]["variable"] for name in block}
    assert set(re.findall(r"\bvar\.(\w+)", every)) == declared
    blocks = [block for part in parsed.values() for block in part.get("resource", [])]
    made = {f"{kind}.{name}".replace('"', "") for block in blocks for kind in block for name in block[kind]}
    assert set(re.findall(r"(?<!data\.)\b(aws_\w+\.\w+)\b", every)) <= made
    assert not re.search(r"(?m)^\s*(master_)?password\s*=", every)


@pytest.mark.skipif(not shutil.which("terraform"), reason="needs terraform")
def test_terraform_is_formatted() -> None:
    command = ["terraform", "fmt", "-check", "-recursive", str(INFRA / "terraform")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def cluster(
    secrets: Path, free_port: Callable[[], int], service_environment: dict[str, str], tmp_path: Path
) -> Iterator[tuple[str, dict[str, str]]]:
    """A scheduler and a worker with Compose's commands: the address, and the environment of clients."""
    here = {"8786": str(free_port()), "127.0.0.1:8787": "127.0.0.1:0", "dask-scheduler:": "127.0.0.1:"}
    here |= {"/run/secrets": str(secrets), "/copies": str(tmp_path), "${DASK_WORKER_MEMORY:-2g}": "1GB"}
    place = re.compile("|".join(map(re.escape, here)))
    said = json.loads(place.sub(lambda found: here[found[0]], json.dumps(SERVICES)))
    environment = service_environment | said["dask-worker"]["environment"]
    processes = []
    with (tmp_path / "dask.log").open("wb") as log:
        for name in ("dask-scheduler", "dask-worker"):
            command = [str(Path(sys.executable).with_name("dask")), *said[name]["command"][1:]]
            everything: dict[str, Any] = {"env": environment, "cwd": tmp_path, "stdout": log, "stderr": log}
            command += ["--host", "127.0.0.1"]
            processes.append(subprocess.Popen(command, start_new_session=True, **everything))
    try:
        yield said["cpu-worker"]["environment"]["LIVERSEG_COMPUTE__DASK"], environment
    finally:
        for process in reversed(processes):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


@pytest.mark.slow
def test_dask_takes_those_with_a_certificate(cluster: tuple[str, dict[str, str]], secrets: Path) -> None:
    address, environment = cluster
    command = [sys.executable, "-c", CLIENT.format(address=address)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout == "[1, 2, 3]\n", done.stderr
    context = ssl.create_default_context(cafile=secrets / "dask-ca.crt")
    context.check_hostname = False
    host, _, port = address.removeprefix("tls://").partition(":")
    with (
        socket.create_connection((host, int(port)), 10) as plain,
        context.wrap_socket(plain) as door,
        pytest.raises(ssl.SSLError, match="certificate required"),
    ):
        door.recv(1)


def test_processes_are_the_services_of_compose_on_loopback() -> None:
    """`make up` runs the same commands, but for where things are; each is logged, and started in its turn."""
    conf = ConfigParser(interpolation=None)
    conf.read(INFRA / "processes" / "supervisord.conf")
    programs = {
        name.removeprefix("program:"): dict(conf[name])
        for name in conf.sections()
        if name.startswith("program:")
    }
    assert programs.keys() == SERVICES.keys() - {"bucket", "deploy"}
    for name, program in programs.items():
        assert program["autostart"] == "false"
        assert f"/log/{name}" in program["stdout_logfile"]
        words = program["command"].split()
        assert "0.0.0.0" not in program["command"]
        addresses = [
            re.split("[ =]", part)[1] for part in re.findall(r"--?h(?:ost)?[ =]\S+", program["command"])
        ]
        assert set(addresses) <= {"127.0.0.1"}
        if name in ("postgres", "s3"):
            continue
        theirs = {word for word in map(str, SERVICES[name]["command"]) if re.fullmatch(r"[a-z-]+", word)}
        assert theirs - {"--with-healthcheck"} <= set(words), name


def test_the_automations_fit_the_heartbeats() -> None:
    """A healthy run must have sent three heartbeats before it is called lost."""
    found = yaml.safe_load((ROOT / "deployments" / "automations.yaml").read_text())["automations"]
    names = [automation["name"] for automation in found]
    assert f"inspect '{names[0]}'" in (ROOT / "deployments" / "deploy").read_text()
    within = found[0]["trigger"]["within"]
    for place in ("compose.yaml", "kubernetes/settings.yaml", "processes/up"):
        (heartbeat,) = re.findall(r"PREFECT_FLOWS_HEARTBEAT_FREQUENCY\W+(\d+)", (INFRA / place).read_text())
        assert within >= 3 * int(heartbeat)
    deployed = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())["deployments"]
    assert set(found[0]["trigger"]["match_related"]["prefect.resource.name"]) == {
        one["name"] for one in deployed
    }
