"""A network in a model folder: its weights as safetensors, and its kind and shape as JSON."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lexloom.models.registry import KIND

WEIGHTS, CONFIG = "model.safetensors", "config.json"
Network = TypeVar("Network", bound=nn.Module)


def save_network(
    folder: Path,
    kind: str,
    shape: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    details: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write `model.safetensors` and `config.json`.

    `shape` is what the network is built from. `details`, such as the training's config and the rules of the
    text, go into `config.json` beside it.
    """
    # not save_file: its files can be read by their owner alone, and a store is shared
    (folder / WEIGHTS).write_bytes(save({name: each.contiguous() for name, each in tensors.items()}))
    description = {KIND: kind, "shape": dict(shape), **details}
    (folder / CONFIG).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def load_network(
    folder: Path, kind: str, build: Callable[[dict[str, Any], dict[str, Tensor]], Network]
) -> Network:
    """Read what `save_network` wrote: `build` makes the network of its shape and tensors.

    The network is in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the folder contains another kind of model, or its files are damaged or do not match.
    """
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: {folder} does not contain a {kind} model")
    try:
        description = json.loads((folder / CONFIG).read_bytes())
        if description[KIND] != kind:
            raise ValueError(f"it is a model of the kind {description[KIND]!r}")
        network = build(description["shape"], load_file(folder / WEIGHTS))
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the {kind} model in {folder} can't be read ({reason})") from error
    return network.eval()
