"""docker-compose.yml, its image and its secrets, read as Docker would. No service is started here."""

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
def told() -> dict[str, dict[str, Any]]:
    return services()


# what Docker is told


def test_the_one_line_of_the_example_makes_all_secrets(tmp_path: Path) -> None:
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
def test_a_secret_that_is_missing_is_asked_for(name: str, value: str | None) -> None:
    given = {key: secret for key, secret in SECRETS.items() if key != name}
    said = docker_compose("config", "--quiet", secrets=given if value is None else {**given, name: value})
    assert said.returncode != 0
    assert re.search(rf"set {name}\S* in \.env, as \.env\.example shows", said.stderr)


def test_each_secret_reaches_only_those_who_need_it(told: dict[str, Any]) -> None:
    prefect = {"server", "background", "deploy", "worker"}
    allowed = {
        "LEXLOOM_DATABASE_PASSWORD": {"postgres", "migrate", "server", "background"},
        "LEXLOOM_LOGIN": prefect,
        "LEXLOOM_RAY_TOKEN": {"worker", "ray-head", "ray-worker", "ray-gpu-worker"},
    }
    for secret, value in SECRETS.items():
        assert {name for name, service in told.items() if value in str(service)} == allowed[secret]


def test_ports_are_open_to_this_machine_alone_unless_asked_otherwise() -> None:
    def published(**variables: str) -> set[tuple[str, str]]:
        ports = [port for service in services(**variables).values() for port in service.get("ports", [])]
        return {(port["host_ip"], port["published"]) for port in ports}

    assert published() == {("127.0.0.1", "4200"), ("127.0.0.1", "7860")}
    assert published(LEXLOOM_BIND="0.0.0.0", LEXLOOM_PAGE_PORT="80") == {
        ("0.0.0.0", "4200"),
        ("127.0.0.1", "80"),
    }


def test_prefects_page_uses_the_api_of_its_own_address(told: dict[str, Any]) -> None:
    assert told["server"]["environment"]["PREFECT_SERVER_UI_API_URL"] == "/api"


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
def test_a_page_is_served_under_the_names_that_browsers_and_services_use(
    service: str, variables: dict[str, str], names: list[str]
) -> None:
    command = services(**variables)[service]["command"]
    given = [name for flag, name in pairwise(command) if flag == "--allow-host"]
    assert given == names
    for name in given:
        Address.parse(name)


def test_every_service_is_confined(told: dict[str, Any]) -> None:
    for name, service in told.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"cpus", "memory"} <= service["deploy"]["resources"]["limits"].keys(), name
        assert not {"privileged", "network_mode", "pid"} & service.keys(), name
    assert {name: told[name]["user"] for name in told.keys() - OURS} == {
        "postgres": "postgres",
        "redis": "redis",
    }
    assert re.search(r"^USER [1-9]\d*$", dockerfile(), re.MULTILINE)


def test_postgres_and_redis_are_out_of_reach_of_runs(told: dict[str, Any]) -> None:
    inside = {name for name, service in told.items() if "records" in service["networks"]}
    assert inside == {"postgres", "redis", "migrate", "server", "background"}
    assert "records: {internal: true}" in (ROOT / "docker-compose.yml").read_text()


def test_every_service_that_stays_comes_back_and_says_how_it_is(told: dict[str, Any]) -> None:
    for name in told.keys() - ONCE:
        assert told[name]["restart"] == "unless-stopped", name
    unheard = {name for name in told.keys() - ONCE if "healthcheck" not in told[name]}
    assert unheard == {"background"}  # it has no port to ask at: it ends when it fails


def test_images_are_pinned_and_lexloom_has_one(told: dict[str, Any]) -> None:
    for name in told.keys() - OURS:
        assert re.fullmatch(r"\w+:\d+\.\d+(\.\d+)?-bookworm", told[name]["image"]), name
    assert {told[name]["image"] for name in OURS} == {f"lexloom:{project()['version']}"}
    assert re.search(r"^ARG PYTHON=python:3\.\d+\.\d+-slim-\w+$", dockerfile(), re.MULTILINE)


def test_training_can_only_go_to_rays_workers(told: dict[str, Any]) -> None:
    for name in ("worker", "ray-head"):
        assert "--num-cpus=0" in " ".join(told[name]["command"]), name
        assert "--num-gpus=0" in " ".join(told[name]["command"]), name
    assert "--num-cpus=2" in told["ray-worker"]["command"]
    assert "--num-cpus=7" in services(LEXLOOM_RAY_CPUS="7")["ray-worker"]["command"]
    for name in ("worker", "ray-head", "ray-worker", "ray-gpu-worker"):
        places = {each["target"]: each.get("source") for each in told[name]["volumes"]}
        assert places["/store"] == "store", name


def test_gpus_are_asked_for_by_the_profile_alone(told: dict[str, Any]) -> None:
    devices = {
        name: service["deploy"]["resources"]["reservations"]["devices"]
        for name, service in told.items()
        if "reservations" in service["deploy"]["resources"]
    }
    assert devices == {"ray-gpu-worker": [{"driver": "nvidia", "count": -1, "capabilities": ["gpu"]}]}
    assert told["ray-gpu-worker"]["profiles"] == ["gpu"]


# what the programs are told


def test_every_command_is_one_that_its_program_knows(told: dict[str, Any]) -> None:
    lines = [line for service in told.values() for line in command_lines(service["command"])]
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
def test_a_command_that_its_program_does_not_know_is_noticed(line: str) -> None:
    with pytest.raises(BaseException, match=r"(?i)--no-service|no such option|--hosts|--limit"):
        parse(line.split())


def test_every_variable_is_one_that_someone_reads(told: dict[str, Any]) -> None:
    models = (Settings, RedisMessagingSettings, RedisWorkerCleanupQueueSettings)
    prefect = set().union(*(_get_valid_setting_names(model) for model in models))
    ours = {
        name for folder in ("flows", "tasks") for name in names_in((ROOT / folder).rglob("*.py"), "LEXLOOM")
    }
    library = Path(ray.__file__).parent
    rays = names_in([Path(ray._raylet.__file__), *library.glob("_*/**/*.py")], "RAY")
    for name, service in told.items():
        for variable in service.get("environment", {}):
            if variable not in OTHERS:
                assert variable in prefect | ours | rays, f"{name}: {variable}"


def test_nothing_is_reported_to_anyone(told: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line keeps at home, the services do, too."""
    monkeypatch.setattr(os, "environ", settled := {})
    configure_environment(verbose=True)
    reports = {
        name: value for name, value in settled.items() if re.search("TRACK|TELEMETRY|ANALYTICS|USAGE", name)
    }
    assert len(reports) == 5
    for name, service in told.items():
        for variable, value in service.get("environment", {}).items():
            assert reports.get(variable, value) == value, name
    for name in OURS:
        assert {"DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY"} <= told[name]["environment"].keys(), name
    for name in ("worker", "ray-head", "ray-worker", "ray-gpu-worker"):
        assert "RAY_USAGE_STATS_ENABLED" in told[name]["environment"], name
    for name in ("migrate", "server", "background"):
        assert "PREFECT_SERVER_ANALYTICS_ENABLED" in told[name]["environment"], name
    assert "GRADIO_ANALYTICS_ENABLED" in told["page"]["environment"]


# the image


def test_the_dockerfile_passes_its_linter() -> None:
    said = subprocess.run(
        [SCRIPTS / "hadolint", ROOT / "deployments/Dockerfile"], capture_output=True, text=True
    )
    assert said.returncode == 0, said.stdout


def test_the_image_is_built_with_the_torch_of_the_makefile(told: dict[str, Any]) -> None:
    (torch,) = re.findall(r"^TORCH \?= (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    given = told["worker"]["build"]["args"]
    assert given == dict(re.findall(r"^ARG (TORCH\w*)=(\S+)$", dockerfile(), re.MULTILINE))
    assert given["TORCH"] == torch
    assert given["TORCH_INDEX"].endswith("/cpu")


def test_the_image_has_the_packages_of_the_project_and_no_more() -> None:
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
    """The programs that a service starts; those of a shell's script, too."""
    if command[0] != "sh":
        return [command]
    return [start.split() for start in re.findall(r"(?:prefect|ray|python) [^;|\n)]+", command[-1])]


def names_in(files: Iterable[Path], prefix: str) -> set[str]:
    """All words of some files that begin like this."""
    pattern = re.compile(rb"\b" + prefix.encode() + rb"_\w+")
    return {word.decode() for file in files for word in pattern.findall(file.read_bytes())}


def parse(line: list[str]) -> None:
    """Has the program's own parser read a command line."""
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
