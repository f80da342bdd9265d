"""docker-compose.yml, its image and its secrets, as Docker reads them. No service is started."""

import os
import re
import subprocess
import tomllib
from collections.abc import Iterable
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.scripts.scripts
from prefect.cli._app import _app as prefect_cli
from prefect.settings import Settings
from prefect.settings.legacy import _get_valid_setting_names
from prefect_redis.cleanup_queue import RedisWorkerCleanupQueueSettings
from prefect_redis.client import RedisMessagingSettings

from lexloom.flows.environment import configure_environment
from lexloom.flows.local_server.same_origin import Address
from tests.deployments.cli.command_line import parse_command
from tests.system.deployments.compose import ROOT, SCRIPTS, SECRETS, docker_compose, services

ONCE = {"migrate", "deploy"}
OTHERS = {  # read by the image of Postgres, by all programs, or by libraries without a list of their own
    *("POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD", "POSTGRES_INITDB_ARGS"),
    *("HOME", "XDG_CACHE_HOME", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_ANALYTICS_ENABLED"),
}
OURS = {
    "migrate",
    "server",
    "background",
    "deploy",
    "worker",
    "page",
    "ray-head",
    "ray-worker",
    "ray-gpu-worker",
}


@pytest.fixture(scope="module")
def default_services() -> dict[str, dict[str, Any]]:
    return services()


# configuration of the services


def test_the_documented_command_generates_all_secrets(tmp_path: Path) -> None:
    (line,) = (each for each in example().splitlines() if "printf" in each)
    subprocess.run(["bash", "-c", line.lstrip("# ")], cwd=tmp_path, check=True)
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0
    made = dict(each.split("=", 1) for each in (tmp_path / ".env").read_text().splitlines())
    assert made.keys() == SECRETS.keys() == set(re.findall(r"^(LEXLOOM_\w+)=$", example(), re.MULTILINE))
    assert re.fullmatch(r"lexloom:[0-9a-f]{48}", made["LEXLOOM_LOGIN"])
    assert len(set(made.values())) == 3
    assert docker_compose("config", "--quiet", secrets=made).returncode == 0


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_secret_is_an_error(name: str, value: str | None) -> None:
    given = {key: secret for key, secret in SECRETS.items() if key != name}
    said = docker_compose("config", "--quiet", secrets=given if value is None else {**given, name: value})
    assert said.returncode != 0
    assert re.search(rf"set {name}\S* in \.env, as \.env\.example shows", said.stderr)


def test_each_secret_is_passed_only_to_the_services_that_need_it(default_services: dict[str, Any]) -> None:
    prefect = {"server", "background", "deploy", "worker"}
    allowed = {
        "LEXLOOM_DATABASE_PASSWORD": {"postgres", "migrate", "server", "background"},
        "LEXLOOM_LOGIN": prefect,
        "LEXLOOM_RAY_TOKEN": {"worker", "ray-head", "ray-worker", "ray-gpu-worker"},
    }
    for secret, value in SECRETS.items():
        assert {name for name, service in default_services.items() if value in str(service)} == allowed[
            secret
        ]


def test_ports_are_published_on_loopback_by_default() -> None:
    def published(**variables: str) -> set[tuple[str, str]]:
        ports = [port for service in services(**variables).values() for port in service.get("ports", [])]
        return {(port["host_ip"], port["published"]) for port in ports}

    assert published() == {("127.0.0.1", "4200"), ("127.0.0.1", "7860")}
    assert published(LEXLOOM_BIND="0.0.0.0", LEXLOOM_PAGE_PORT="80") == {
        ("0.0.0.0", "4200"),
        ("127.0.0.1", "80"),
    }


def test_the_prefect_ui_uses_the_api_of_its_own_origin(default_services: dict[str, Any]) -> None:
    assert default_services["server"]["environment"]["PREFECT_SERVER_UI_API_URL"] == "/api"


@pytest.mark.parametrize(
    ("service", "variables", "names"),
    [
        ("server", {}, ["server:4200", "http://localhost:4200"]),
        ("server", {"LEXLOOM_PREFECT_PORT": "4300"}, ["server:4200", "http://localhost:4300"]),
        (
            "server",
            {"LEXLOOM_PREFECT_URL": "https://runs.example.org"},
            ["server:4200", "https://runs.example.org"],
        ),
        ("page", {}, ["http://localhost:7860"]),
        ("page", {"LEXLOOM_PAGE_PORT": "80"}, ["http://localhost:80"]),
        ("page", {"LEXLOOM_PAGE_URL": "https://models.example.org"}, ["https://models.example.org"]),
    ],
)
def test_pages_accept_the_host_names_of_browsers_and_services(
    service: str, variables: dict[str, str], names: list[str]
) -> None:
    command = services(**variables)[service]["command"]
    given = [name for flag, name in pairwise(command) if flag == "--allow-host"]
    assert given == names
    for name in given:
        Address.parse(name)


def test_every_service_has_restricted_privileges(default_services: dict[str, Any]) -> None:
    for name, service in default_services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"cpus", "memory"} <= service["deploy"]["resources"]["limits"].keys(), name
        assert not {"privileged", "network_mode", "pid"} & service.keys(), name
    assert {name: default_services[name]["user"] for name in default_services.keys() - OURS} == {
        "postgres": "postgres",
        "redis": "redis",
    }
    assert re.search(r"^USER [1-9]\d*$", dockerfile(), re.MULTILINE)


def test_runs_cannot_reach_postgres_and_redis(default_services: dict[str, Any]) -> None:
    inside = {name for name, service in default_services.items() if "records" in service["networks"]}
    assert inside == {"postgres", "redis", "migrate", "server", "background"}
    assert "records: {internal: true}" in (ROOT / "docker-compose.yml").read_text()


def test_long_running_services_restart_and_have_a_health_check(default_services: dict[str, Any]) -> None:
    for name in default_services.keys() - ONCE:
        assert default_services[name]["restart"] == "unless-stopped", name
    unheard = {name for name in default_services.keys() - ONCE if "healthcheck" not in default_services[name]}
    assert unheard == {"background"}  # it has no port to ask at: it ends when it fails


def test_images_are_pinned_and_lexloom_uses_a_single_one(default_services: dict[str, Any]) -> None:
    for name in default_services.keys() - OURS:
        assert re.fullmatch(r"\w+:\d+\.\d+(\.\d+)?-bookworm", default_services[name]["image"]), name
    assert {default_services[name]["image"] for name in OURS} == {f"lexloom:{project()['version']}"}
    assert re.search(r"^ARG PYTHON=python:3\.\d+\.\d+-slim-\w+$", dockerfile(), re.MULTILINE)


def test_training_runs_only_on_ray_workers(default_services: dict[str, Any]) -> None:
    for name in ("worker", "ray-head"):
        assert "--num-cpus=0" in " ".join(default_services[name]["command"]), name
        assert "--num-gpus=0" in " ".join(default_services[name]["command"]), name
    assert "--num-cpus=2" in default_services["ray-worker"]["command"]
    assert "--num-cpus=7" in services(LEXLOOM_RAY_CPUS="7")["ray-worker"]["command"]
    for name in ("worker", "ray-head", "ray-worker", "ray-gpu-worker"):
        places = {each["target"]: each.get("source") for each in default_services[name]["volumes"]}
        assert places["/store"] == "store", name


def test_only_the_gpu_profile_requests_gpus(default_services: dict[str, Any]) -> None:
    devices = {
        name: service["deploy"]["resources"]["reservations"]["devices"]
        for name, service in default_services.items()
        if "reservations" in service["deploy"]["resources"]
    }
    assert devices == {"ray-gpu-worker": [{"driver": "nvidia", "count": -1, "capabilities": ["gpu"]}]}
    assert default_services["ray-gpu-worker"]["profiles"] == ["gpu"]


# commands and variables of the programs


def test_every_command_line_is_valid(default_services: dict[str, Any]) -> None:
    lines = [line for service in default_services.values() for line in command_lines(service["command"])]
    assert {line[0] for line in lines} == {"postgres", "redis-server", "prefect", "ray", "lexloom", "python"}
    for line in lines:
        parse(line)


@pytest.mark.parametrize(
    "line",
    [
        "prefect server start --no-service",
        "ray start --num-cpu=0",
        "lexloom app --hosts x",
        "lexloom deploy --limit=1",
    ],
)
def test_an_invalid_command_line_is_detected(line: str) -> None:
    with pytest.raises(BaseException, match=r"(?i)--no-service|no such option|--hosts|--limit"):
        parse(line.split())


def test_every_variable_is_read_by_some_program(default_services: dict[str, Any]) -> None:
    models = (Settings, RedisMessagingSettings, RedisWorkerCleanupQueueSettings)
    prefect = set().union(*(_get_valid_setting_names(model) for model in models))
    ours = {
        name for folder in ("flows", "tasks") for name in names_in((ROOT / folder).rglob("*.py"), "LEXLOOM")
    }
    library = Path(ray.__file__).parent
    rays = names_in([Path(ray._raylet.__file__), *library.glob("_*/**/*.py")], "RAY")
    for name, service in default_services.items():
        for variable in service.get("environment", {}):
            if variable not in OTHERS:
                assert variable in prefect | ours | rays, f"{name}: {variable}"


def test_usage_statistics_are_disabled(
    default_services: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The services disable the same statistics as the command line."""
    monkeypatch.setattr(os, "environ", settled := {})
    configure_environment(verbose=True)
    reports = {
        name: value for name, value in settled.items() if re.search("TRACK|TELEMETRY|ANALYTICS|USAGE", name)
    }
    assert len(reports) == 5
    for name, service in default_services.items():
        for variable, value in service.get("environment", {}).items():
            assert reports.get(variable, value) == value, name
    for name in OURS:
        assert {"DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY"} <= default_services[name]["environment"].keys(), (
            name
        )
    for name in ("worker", "ray-head", "ray-worker", "ray-gpu-worker"):
        assert "RAY_USAGE_STATS_ENABLED" in default_services[name]["environment"], name
    for name in ("migrate", "server", "background"):
        assert "PREFECT_SERVER_ANALYTICS_ENABLED" in default_services[name]["environment"], name
    assert "GRADIO_ANALYTICS_ENABLED" in default_services["page"]["environment"]


# the image


def test_the_dockerfile_passes_its_linter() -> None:
    said = subprocess.run(
        [SCRIPTS / "hadolint", ROOT / "deployments/Dockerfile"], capture_output=True, text=True
    )
    assert said.returncode == 0, said.stdout


def test_the_image_uses_the_torch_version_of_the_makefile(default_services: dict[str, Any]) -> None:
    (torch,) = re.findall(r"^TORCH \?= (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    given = default_services["worker"]["build"]["args"]
    assert given == dict(re.findall(r"^ARG (TORCH\w*)=(\S+)$", dockerfile(), re.MULTILINE))
    assert given["TORCH"] == torch
    assert given["TORCH_INDEX"].endswith("/cpu")


def test_the_image_installs_exactly_the_project_packages() -> None:
    folders = {path.name for path in (ROOT / "lexloom").iterdir() if path.is_symlink()} | {"lexloom"}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert let_in == {*folders, "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    (made,) = re.findall(r"mkdir ([\w ]+) &&", dockerfile())
    assert made == "lexloom"
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', dockerfile())
    assert set(extras.split(",")) <= project()["optional-dependencies"].keys()


# reading


def example() -> str:
    return (ROOT / ".env.example").read_text()


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def dockerfile() -> str:
    return (ROOT / "deployments/Dockerfile").read_text()


def command_lines(command: list[str]) -> list[list[str]]:
    """Return the programs that a service starts, including those in a shell script."""
    if command[0] != "sh":
        return [command]
    return [start.split() for start in re.findall(r"(?:prefect|ray|python) [^;|\n)]+", command[-1])]


def names_in(files: Iterable[Path], prefix: str) -> set[str]:
    """Return all words in files that begin with this prefix."""
    pattern = re.compile(rb"\b" + prefix.encode() + rb"_\w+")
    return {word.decode() for file in files for word in pattern.findall(file.read_bytes())}


def parse(line: list[str]) -> None:
    """Parse a command line with the program's own parser."""
    program, *arguments = line
    if program == "prefect":
        prefect_cli.parse_args(arguments, exit_on_error=False, print_error=False)
    elif program == "ray":
        ray.scripts.scripts.cli.commands[arguments[0]].make_context(arguments[0], arguments[1:])
    elif program == "python":
        flag, module, *arguments = arguments
        assert flag == "-m"
        _, unknown = import_module(module).build_parser().parse_known_args(arguments)
        assert not unknown, unknown
    elif program == "lexloom":
        parse_command(arguments)
