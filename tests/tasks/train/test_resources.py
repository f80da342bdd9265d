"""The runner, device, workers and threads that "auto" stands for."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from lexloom.tasks.store.artifacts import canonical
from lexloom.tasks.train import resources
from lexloom.tasks.train.resources import Node, Resources, choose_resources
from lexloom.tasks.train.run import TrainConfig
from lexloom.tasks.train.sentiment import TrainSentimentConfig
from lexloom.tasks.train.transformer import TrainTransformerConfig
from lexloom.tasks.train.window_lm import TrainWindowLMConfig
from lexloom.tasks.train.word2vec import TrainWord2VecConfig

CONFIGS = (TrainWord2VecConfig, TrainSentimentConfig, TrainTransformerConfig, TrainWindowLMConfig)
LAPTOP, GPU, SERVER = Node(8, 0), Node(8, 1), Node(32, 4)
ADDRESS = "10.0.0.1:6379"


@pytest.fixture(autouse=True)
def no_cluster_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def choose(machine: Node | list[Node], most: int = 64, most_threads: int = 256, **given: Any) -> Resources:
    """Choose resources on a machine, or, for several nodes, on a cluster."""
    if isinstance(machine, list):
        given = {"ray_address": ADDRESS, **given}
    return choose_resources(
        TrainConfig(**given),  # type: ignore[arg-type]
        most,
        most_threads=lambda workers: most_threads,
        measure_machine=lambda: machine if isinstance(machine, Node) else machine[0],
        measure_cluster=lambda address: machine if isinstance(machine, list) else [machine],
    )


def figures(found: Resources) -> tuple[str, str, int, int, int]:
    return found.runner, found.device, found.workers, found.threads, found.cpus


@pytest.mark.parametrize(
    ("machine", "given", "expected"),
    [
        (LAPTOP, {}, ("local", "cpu", 1, 8, 8)),
        (LAPTOP, {"threads": 3}, ("local", "cpu", 1, 3, 3)),
        (LAPTOP, {"workers": 1}, ("local", "cpu", 1, 8, 8)),
        (LAPTOP, {"workers": 2}, ("ray", "cpu", 2, 4, 4)),
        (LAPTOP, {"workers": 3}, ("ray", "cpu", 3, 2, 2)),
        (LAPTOP, {"workers": 16}, ("ray", "cpu", 16, 1, 1)),
        (LAPTOP, {"runner": "ray"}, ("ray", "cpu", 8, 1, 1)),
        (LAPTOP, {"runner": "ray", "threads": 3}, ("ray", "cpu", 2, 3, 3)),
        (LAPTOP, {"runner": "ray", "threads": 16}, ("ray", "cpu", 1, 16, 8)),
        (LAPTOP, {"runner": "local"}, ("local", "cpu", 1, 8, 8)),
        (LAPTOP, {"runner": "local", "ray_address": ADDRESS}, ("local", "cpu", 1, 8, 8)),
        (LAPTOP, {"min_workers": 2}, ("ray", "cpu", 8, 1, 1)),
        (LAPTOP, {"device": "cuda"}, ("local", "cuda", 1, 1, 1)),
        (GPU, {}, ("local", "cuda", 1, 1, 1)),
        (GPU, {"device": "cpu"}, ("local", "cpu", 1, 8, 8)),
        (GPU, {"workers": 2}, ("ray", "cuda", 2, 1, 1)),
        (SERVER, {}, ("ray", "cuda", 4, 1, 1)),
        (SERVER, {"runner": "local"}, ("local", "cuda", 1, 1, 1)),
        (SERVER, {"workers": 1}, ("local", "cuda", 1, 1, 1)),
        (SERVER, {"device": "cpu"}, ("local", "cpu", 1, 32, 32)),
        ([LAPTOP, LAPTOP], {}, ("ray", "cpu", 16, 1, 1)),
        ([LAPTOP], {"workers": 1}, ("ray", "cpu", 1, 8, 8)),
        ([LAPTOP, LAPTOP], {"workers": 2}, ("ray", "cpu", 2, 8, 8)),
        ([LAPTOP, Node(2, 0)], {"workers": 3}, ("ray", "cpu", 3, 2, 2)),
        ([LAPTOP, LAPTOP], {"threads": 5}, ("ray", "cpu", 2, 5, 5)),
        ([SERVER, SERVER], {}, ("ray", "cuda", 8, 1, 1)),
        ([SERVER, SERVER], {"device": "cpu"}, ("ray", "cpu", 64, 1, 1)),
    ],
)
def test_choice(machine: Node | list[Node], given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert figures(choose(machine, **given)) == expected


def test_the_model_limits_the_workers_and_the_cpus_are_divided_among_them() -> None:
    assert figures(choose([Node(32, 0)] * 4, most=16)) == ("ray", "cpu", 16, 8, 8)
    assert figures(choose([Node(12, 0)] * 4, most=5)) == ("ray", "cpu", 5, 6, 6), "two fit on a node"
    assert figures(choose(SERVER, most=2)) == ("ray", "cuda", 2, 1, 1)
    assert figures(choose(SERVER, most=1)) == ("local", "cuda", 1, 1, 1)
    assert figures(choose(LAPTOP, most=2, workers=4)) == ("ray", "cpu", 2, 4, 4)
    assert figures(choose(LAPTOP, most=1, workers=4)) == ("local", "cpu", 1, 8, 8)
    assert figures(choose(Node(64, 0), most_threads=16)) == ("local", "cpu", 1, 16, 16)
    assert choose(LAPTOP, most_threads=2, threads=4).threads == 4, "a given number is kept"


def test_a_busy_cluster_needs_room_for_one_automatic_worker_or_for_the_given_number() -> None:
    nodes = [LAPTOP, LAPTOP]
    assert choose(nodes).min_workers == 1
    assert choose(nodes, min_workers=4).min_workers == 4
    assert choose(nodes, workers=4).min_workers == 4
    assert choose(nodes, workers=4, min_workers=2).min_workers == 2
    assert choose(nodes, most=2, workers=4, min_workers=3).min_workers == 2
    assert choose(LAPTOP, runner="ray").min_workers == 8, "nobody else uses a runtime of one's own"


def test_parameters_without_effect_are_reported() -> None:
    assert choose(GPU, threads=4).unused == ["threads has no effect on a GPU"]
    assert choose(LAPTOP, runner="local", workers=2).unused == ["workers is 2, but the local runner has one"]
    assert choose(LAPTOP, threads=4, workers=2).unused == []


@pytest.mark.parametrize(
    ("machine", "given", "line"),
    [
        (Node(2, 0), {}, "1 worker, 2 threads on this machine (auto: 2 CPUs)"),
        (GPU, {}, "1 worker, one GPU on this machine (auto: 8 CPUs, 1 GPU)"),
        (SERVER, {}, "4 workers, one GPU each on this machine, with Ray (auto: 32 CPUs, 4 GPUs)"),
        (GPU, {"workers": 2}, "2 workers, sharing GPUs on this machine, with Ray (auto: 8 CPUs, 1 GPU)"),
        (
            [LAPTOP, LAPTOP],
            {},
            f"1 to 16 workers, 1 thread each on the Ray cluster at {ADDRESS} (auto: 16 CPUs, 2 nodes)",
        ),
        (
            GPU,
            {"threads": 4},
            "1 worker, one GPU on this machine (auto: 8 CPUs, 1 GPU); threads has no effect on a GPU",
        ),
        (
            LAPTOP,
            {"runner": "local", "device": "cpu", "workers": 1, "threads": 2},
            "1 worker, 2 threads on this machine",
        ),
    ],
)
def test_description(machine: Node | list[Node], given: dict[str, Any], line: str) -> None:
    assert choose(machine, **given).describe() == line


# the key


def machine_of(monkeypatch: pytest.MonkeyPatch, machine: Node, cluster: list[Node] | None = None) -> None:
    def measure_cluster(address: str) -> list[Node]:
        assert cluster is not None, "the cluster was asked without need"
        return cluster

    monkeypatch.setattr(resources, "measure_this_machine", lambda: machine)
    monkeypatch.setattr(resources, "measure_ray_cluster", measure_cluster)


def key_fields(config: TrainConfig) -> dict[str, Any]:
    names = ("workers", "min_workers", "threads", "device", "runner", "ray_address")
    return {name: value for name, value in canonical(config.measured()).items() if name in names}


@pytest.mark.parametrize("config", [TrainSentimentConfig, TrainTransformerConfig])
def test_the_key_of_averaged_gradients_does_not_depend_on_the_machine(
    monkeypatch: pytest.MonkeyPatch, config: type[TrainConfig]
) -> None:
    machine_of(monkeypatch, SERVER)
    assert key_fields(config(ray_address=ADDRESS)) == {}
    assert key_fields(config(workers=2, min_workers=1, threads=4, device="cuda", runner="ray")) == {}


def test_the_key_of_averaged_replicas_has_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_of(monkeypatch, LAPTOP, [LAPTOP, LAPTOP])
    assert key_fields(TrainWindowLMConfig()) == {"workers": 1}
    assert key_fields(TrainWindowLMConfig(workers=1)) == {"workers": 1}
    assert key_fields(TrainWindowLMConfig(ray_address=ADDRESS)) == {"workers": 16}
    assert key_fields(TrainWindowLMConfig(ray_address=ADDRESS, batch_size=4)) == {"workers": 4}
    assert key_fields(TrainWindowLMConfig(workers=16, min_workers=2, threads=2)) == {"workers": 16}
    assert key_fields(TrainWindowLMConfig(sync="all_reduce")) == {}
    measured = TrainWindowLMConfig(ray_address=ADDRESS).measured()
    assert (measured.workers, measured.min_workers) == (16, 1), "a busy cluster trains with fewer"


def test_the_key_of_word_vectors_has_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_of(monkeypatch, LAPTOP, [SERVER])
    assert key_fields(TrainWord2VecConfig()) == key_fields(TrainWord2VecConfig(device="cpu", workers=4))
    assert key_fields(TrainWord2VecConfig()) == {"device": "cpu"}
    assert key_fields(TrainWord2VecConfig(ray_address=ADDRESS)) == {"device": "cuda"}


def test_a_cluster_is_not_asked_for_a_key_without_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_of(monkeypatch, LAPTOP)
    assert key_fields(TrainWord2VecConfig(ray_address=ADDRESS, device="cpu")) == {"device": "cpu"}
    assert key_fields(TrainWindowLMConfig(ray_address=ADDRESS, workers=4)) == {"workers": 4}


# parameters


@pytest.mark.parametrize("config", CONFIGS)
def test_wrong_numbers_have_one_error(config: type[TrainConfig]) -> None:
    for field, value, problem in (
        ("workers", 0, "greater than or equal to 1"),
        ("workers", 5000, "less than or equal to"),
        ("workers", "many", "valid integer"),
        ("threads", 257, "less than or equal to 256"),
    ):
        with pytest.raises(ValidationError, match=problem) as raised:
            config(**{field: value})
        assert raised.value.error_count() == 1


@pytest.mark.parametrize("config", CONFIGS)
def test_numbers_and_auto_are_accepted_as_text(config: type[TrainConfig]) -> None:
    given = config.model_validate({"workers": "2", "threads": "auto"})
    assert (given.workers, given.threads) == (2, "auto")
    assert (config().workers, config().threads, config().device, config().runner) == ("auto",) * 4


@pytest.mark.parametrize("config", CONFIGS)
def test_schema_is_a_number_or_auto(config: type[BaseModel]) -> None:
    for name in ("workers", "threads"):
        field = config.model_json_schema()["properties"][name]
        number, auto = field["anyOf"]
        assert (number["type"], number["minimum"], auto["enum"]) == ("integer", 1, ["auto"])
        assert field["default"] == "auto"


def test_parameters_of_the_other_device_are_accepted() -> None:
    TrainWord2VecConfig(device="cuda", threads=2)
    TrainWord2VecConfig(device="cpu", programs=2)


def test_local_workers_are_accepted(tmp_path: Path) -> None:
    assert TrainConfig(runner="local", workers=2).workers == 2
