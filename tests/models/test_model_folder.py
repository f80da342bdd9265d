"""A network's folder: what is saved is loaded, and other or damaged folders are one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lexloom.models.model_folder import load_network, save_network


def build(shape: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Linear:
    network = nn.Linear(**shape)
    network.load_state_dict(tensors)
    return network


@pytest.fixture
def network(tmp_path: Path) -> nn.Linear:
    made = nn.Linear(2, 3)
    save_network(tmp_path, "linear", {"in_features": 2, "out_features": 3}, made.state_dict(), {"seed": 7})
    return made


def test_what_is_loaded_is_what_was_saved(network: nn.Linear, tmp_path: Path) -> None:
    loaded = load_network(tmp_path, "linear", build)
    assert torch.equal(loaded.weight, network.weight)
    assert not loaded.training
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "model": "linear",
        "shape": {"in_features": 2, "out_features": 3},
        "seed": 7,
    }


def test_weights_can_be_read_by_whoever_may_read_the_config(network: nn.Linear, tmp_path: Path) -> None:
    modes = {(tmp_path / name).stat().st_mode for name in ("model.safetensors", "config.json")}
    assert len(modes) == 1


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"model": "other"}, ValueError, "it is a model of the kind 'other'"),
        ({"shape": {"in_features": 4, "out_features": 3}}, ValueError, "linear model in .* can't be read"),
        ({"shape": {"colour": 1}}, ValueError, "colour"),
        (None, FileNotFoundError, r"config\.json is missing: .* does not contain a linear model"),
    ],
)
def test_a_wrong_folder_is_one_sentence(
    network: nn.Linear, tmp_path: Path, change: dict[str, Any] | None, error: type[Exception], sentence: str
) -> None:
    path = tmp_path / "config.json"
    described = json.loads(path.read_text())
    path.unlink()
    if change is not None:
        path.write_text(json.dumps({**described, **change}))
    with pytest.raises(error, match=sentence) as raised:
        load_network(tmp_path, "linear", build)
    assert "\n" not in str(raised.value)
