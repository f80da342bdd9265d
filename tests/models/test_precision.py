"""Precision: bfloat16 is used where a measurement shows that it is faster."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lexloom.models import precision
from lexloom.models.precision import Layer, cache_file, is_bfloat16_faster, measure, processor, use_bfloat16

LAYER = Layer(rows=2048, inputs=128, outputs=512)
Measured = Callable[[float, float], list[Layer]]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for the test, and a process without measurements."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    precision._is_faster_on_cpu.cache_clear()
    return tmp_path


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """Replace measurements with these milliseconds; return the layers that are measured."""

    def give(float32: float, bfloat16: float) -> list[Layer]:
        layers: list[Layer] = []

        def measure(layer: Layer) -> dict[str, float]:
            layers.append(layer)
            return {"float32": float32, "bfloat16": bfloat16}

        monkeypatch.setattr(precision, "measure", measure)
        return layers

    return give


@pytest.mark.parametrize(("bfloat16", "pays"), [(4.6, True), (8.9, True), (9.1, False), (20.0, False)])
def test_bfloat16_is_used_if_a_tenth_faster(measured: Measured, bfloat16: float, pays: bool) -> None:
    measured(10.0, bfloat16)
    assert is_bfloat16_faster(LAYER, "cpu") is pays
    assert use_bfloat16("auto", LAYER, "cpu") is pays
    assert use_bfloat16("bfloat16", LAYER, "cpu")
    assert not use_bfloat16("float32", LAYER, "cpu")


def test_measurement_is_cached_per_cpu_torch_version_and_shape(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = measured(10.0, 5.0)
    for _ in range(2):
        assert is_bfloat16_faster(LAYER, "cpu")
        precision._is_faster_on_cpu.cache_clear()  # as another process
    assert layers == [Layer(512, 128, 512)]
    (key,) = json.loads(cache_file().read_text())
    assert key == f"{processor()}, torch {torch.__version__}, 512x128x512"
    monkeypatch.setattr(precision, "processor", lambda: "another")
    assert is_bfloat16_faster(LAYER, "cpu")
    assert is_bfloat16_faster(Layer(8, 16, 16), "cpu")
    assert layers == [Layer(512, 128, 512), Layer(512, 128, 512), Layer(8, 16, 16)]
    assert len(json.loads(cache_file().read_text())) == 3


@pytest.mark.parametrize("content", ["", "[1]", '{"a": {"float32": "fast"}}', "\x00"])
def test_unreadable_cache_is_measured_again(measured: Measured, content: str) -> None:
    cache_file().parent.mkdir(parents=True)
    cache_file().write_text(content)
    measured(10.0, 5.0)
    assert is_bfloat16_faster(LAYER, "cpu")
    assert len(json.loads(cache_file().read_text())) == 1


def test_unwritable_cache_folder_is_not_an_error(measured: Measured, cache_folder: Path) -> None:
    (cache_folder / "lexloom").touch()  # a file, where the folder should be
    layers = measured(10.0, 20.0)
    assert not is_bfloat16_faster(LAYER, "cpu")
    assert not is_bfloat16_faster(LAYER, "cpu")
    assert len(layers) == 1


def test_wide_layer_is_measured_on_few_rows(measured: Measured) -> None:
    layers = measured(10.0, 5.0)
    is_bfloat16_faster(Layer(100_000, 768, 3072), "cpu")
    is_bfloat16_faster(Layer(100_000, 256, 1024), "cpu")
    assert [layer.rows for layer in layers] == [64, 128]


def test_measurement_restores_threads_and_random_state() -> None:
    torch.manual_seed(1)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    found = measure(Layer(8, 16, 16))
    assert found.keys() == {"float32", "bfloat16"}
    assert all(0 < milliseconds < 1000 for milliseconds in found.values())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
