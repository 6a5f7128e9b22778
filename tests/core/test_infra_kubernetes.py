"""The cluster's Kubernetes resources, held against each other, the settings, Compose and Terraform."""

import itertools
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.settings import PREFIX, load_settings
from liverseg_core.config import Settings

INFRA = Path(__file__).parents[2] / "infra"
FILES = sorted((INFRA / "kubernetes").glob("*.yaml"))
SERVICES = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
SECRETS = yaml.safe_load((INFRA / "compose.yaml").read_text())["secrets"]
PARSED = itertools.chain.from_iterable(yaml.safe_load_all(path.read_text()) for path in FILES)
RESOURCES: list[dict[str, Any]] = [found for found in PARSED if found["kind"] != "Kustomization"]
SETTINGS: dict[str, str] = next(found["data"] for found in RESOURCES if found["kind"] == "ConfigMap")
KINDS = {
    "v1": {"Namespace", "ServiceAccount", "ConfigMap", "Service"},
    "apps/v1": {"Deployment"},
    "batch/v1": {"Job"},
    "networking.k8s.io/v1": {"NetworkPolicy"},
    "kubernetes.dask.org/v1": {"DaskCluster"},
}


def _pods() -> Iterator[tuple[str, tuple[dict[str, Any], dict[str, str]]]]:
    for found in RESOURCES:
        name, spec = found["metadata"]["name"], found.get("spec", {})
        if found["kind"] in ("Deployment", "Job"):
            yield name, (spec["template"]["spec"], spec["template"]["metadata"]["labels"])
        elif found["kind"] == "DaskCluster":  # labelled by the operator
            for part in ("scheduler", "worker"):
                labels = {"dask.org/cluster-name": name, "dask.org/component": part}
                yield f"dask-{part}", (spec[part]["spec"], labels)


PODS = dict(_pods())


def test_resources_are_known_and_applied_once() -> None:
    names = [(found["kind"], found["metadata"]["name"]) for found in RESOURCES]
    assert len(set(names)) == len(names)
    assert all(found["kind"] in KINDS[found["apiVersion"]] for found in RESOURCES)
    listed = yaml.safe_load((INFRA / "kubernetes" / "kustomization.yaml").read_text())["resources"]
    assert {*listed, "kustomization.yaml"} == {path.name for path in FILES}


def test_the_cluster_has_the_parts_that_compose_has() -> None:
    assert PODS.keys() == SERVICES.keys() - {"postgres", "s3", "bucket"}
    for name, (spec, _) in PODS.items():
        words = [word.strip('"').partition("=")[0] for word in spec["containers"][0]["args"][:3]]
        assert words[:2] == [word.partition("=")[0] for word in SERVICES[name]["command"][:2]], name


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_confined_and_given_what_it_uses(name: str) -> None:
    spec, _ = PODS[name]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    (container,) = spec["containers"]
    confined = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True}
    assert container["securityContext"] == confined | {"capabilities": {"drop": ["ALL"]}}
    assert container["resources"].keys() == {"requests", "limits"}
    assert name == "deploy" or "livenessProbe" in container
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
    given = {item["key"] for item in volumes["secrets"]["secret"]["items"]}
    assert given <= SECRETS.keys()
    assert given == set(SERVICES[name]["secrets"])
    environment = {pair["name"]: pair["value"] for pair in container.get("env", [])}
    assert environment.get("SECRETS") == SERVICES[name].get("environment", {}).get("SECRETS")


def test_selectors_find_pods() -> None:
    labels = [found for _, found in PODS.values()]
    for found in RESOURCES:
        spec = found.get("spec", {})
        if found["kind"] == "Deployment":
            assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
        elif found["kind"] == "Service":
            assert spec["selector"] in labels
        elif found["kind"] == "DaskCluster":
            assert spec["scheduler"]["service"]["selector"] in labels
        elif found["kind"] == "NetworkPolicy":
            text = json.dumps(spec)
            named = set(re.findall(r'"app": "([\w-]+)"', text))
            lists = re.findall(r'"values": \[([^\]]*)\]', text)
            named.update(*(shlex.split(names.replace(",", " ")) for names in lists))
            assert named <= PODS.keys()


def test_gpu_nodes_are_found_by_what_terraform_gives_them() -> None:
    spec, _ = PODS["gpu-worker"]
    ((key, value),) = spec["nodeSelector"].items()
    text = (INFRA / "terraform" / "gpu.tf").read_text()
    assert f'"{key}" = "{value}"' in text
    assert f'"{spec["tolerations"][0]["key"]}"' in text
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_workers_with_a_gpu_use_it_or_stop() -> None:
    for name, expected in (("gpu-worker", "cuda"), ("cpu-worker", None)):
        of_pod = {pair["name"]: pair["value"] for pair in PODS[name][0]["containers"][0]["env"]}
        for environment in (of_pod, SERVICES[name]["environment"]):
            assert environment.get("LIVERSEG_COMPUTE__DEVICE") == expected


@pytest.mark.parametrize(
    "environment", [SETTINGS, *(SERVICES[name]["environment"] for name in ("cpu-worker", "gpu-worker"))]
)
def test_settings_of_a_cluster_are_settings(environment: Mapping[str, str]) -> None:
    ours = {name: str(value) for name, value in environment.items() if name.startswith(PREFIX)}
    settings = load_settings(environment=ours)
    assert settings.store.startswith("s3://")
    assert settings.register_.tracking_uri == "http://mlflow:5000"
    assert str(settings.compute.dask).startswith("tls://")
    assert settings.storage.copies == "/copies"
    known = {field.alias or name for name, field in Settings.model_fields.items()} | {"config"}
    assert {name.removeprefix(PREFIX).lower().partition("__")[0] for name in ours} <= known


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
def test_kustomize_takes_every_image_from_a_registry() -> None:
    command = ["kubectl", "kustomize", str(INFRA / "kubernetes")]
    built = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    images = re.findall(r"image: (\S+)", built)
    assert len(images) == len(PODS)
    assert all(image.startswith("registry.example/liverseg-") for image in images)
