"""The Kubernetes example: its fields are consistent with each other and with the installed Ray."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from tests.system.harness.hosts import HEALTH

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "deployments" / "raycluster.yaml"
DOCKERFILE = (ROOT / "deployments" / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    document = yaml.safe_load(EXAMPLE.read_text())
    assert (document["apiVersion"], document["kind"]) == ("ray.io/v1", "RayCluster")
    return document["spec"]


def pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def test_the_cluster_uses_the_installed_ray_version_and_requires_a_token(spec: dict[str, Any]) -> None:
    assert spec["rayVersion"] == ray.__version__
    assert spec["authOptions"] == {"mode": "token"}


def test_worker_groups_have_unique_names_and_valid_sizes(spec: dict[str, Any]) -> None:
    names = [group["groupName"] for group in spec["workerGroupSpecs"]]
    assert len(set(names)) == len(names)
    for group in spec["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_all_pods_use_the_same_image_and_mount_the_same_store(spec: dict[str, Any]) -> None:
    found = set()
    for pod in pods(spec):
        (container,), (volume,) = pod["containers"], pod["volumes"]
        (mount,) = container["volumeMounts"]
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        assert mount["name"] == volume["name"]
        assert environment["LEXLOOM_STORE"] == mount["mountPath"]
        found.add((volume["persistentVolumeClaim"]["claimName"], mount["mountPath"], container["image"]))
    assert len(found) == 1


def test_the_image_user_can_write_to_the_store_and_home(spec: dict[str, Any]) -> None:
    (user,) = re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)
    assert f"useradd --uid {user} --create-home " in DOCKERFILE
    assert {pod["securityContext"]["fsGroup"] for pod in pods(spec)} == {int(user)}


def test_the_image_supports_kuberays_probes(spec: dict[str, Any]) -> None:
    """KubeRay probes Ray's agent without a token: by wget in the pod, or from outside since KubeRay 1.6."""
    assert re.search(r"apt-get install .*\bwget\b", DOCKERFILE)
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', DOCKERFILE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [need for extra in extras.split(",") for need in project["optional-dependencies"][extra]]
    assert "ray[default]" in wanted
    agent = (Path(ray.__file__).parent / "dashboard" / "http_server_agent.py").read_text()
    (public,) = re.findall(r"^PUBLIC_EXACT_PATHS = \[(.*?)\]", agent, re.MULTILINE | re.DOTALL)
    assert {"/api/healthz", "/api/local_raylet_healthz"} <= set(re.findall(r'"(.*?)"', public))


def test_the_documented_commands_build_the_image_and_create_the_claim(spec: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for pod in pods(spec):
        assert pod["containers"][0]["image"] == f"lexloom:{version}"
    for text in (page, DOCKERFILE):
        assert set(re.findall(r"\blexloom:(\d[\d.]+\d)", text)) == {version}
    (claim,) = map(yaml.safe_load, re.findall(r"<<END\n(.*?)^END$", page, re.MULTILINE | re.DOTALL))
    named = pods(spec)[0]["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert (claim["kind"], claim["metadata"]["name"]) == ("PersistentVolumeClaim", named)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert "kuberay/kuberay-operator --version 1.5.1" in page
    assert "1.5.1 or newer" in page


def test_resource_requests_equal_limits(spec: dict[str, Any]) -> None:
    for pod in pods(spec):
        resources = pod["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]


def test_ray_accepts_the_head_settings(spec: dict[str, Any]) -> None:
    server = (Path(ray.__file__).parent / "core" / "src" / "ray" / "gcs" / "gcs_server").read_bytes()
    environment = spec["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    named = {entry["name"] for entry in environment if entry["name"].startswith("RAY_")}
    assert named
    for name in named | set(HEALTH):
        assert name.removeprefix("RAY_").encode() in server
