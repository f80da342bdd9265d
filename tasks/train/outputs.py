"""Shared by the training stages: restores the trained network, and writes metrics, model card and summary.

Each stage writes the weights in the format of its model. Metrics, model card and summary have the same form
for all models.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import JsonValue
from torch import Tensor, nn

from lexloom.models.language_model import TOKENIZER
from lexloom.models.tokenizer.tokenizer import Tokenizer
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.store.artifacts import Summary

MODULE = "module."  # before the names of the network's tensors in a checkpoint
CURVES = ("history", "scores")  # of the metrics; the others are single figures
Network = TypeVar("Network", bound=nn.Module)


def network_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the trained network by their names in the network."""
    return {name.removeprefix(MODULE): each for name, each in tensors.items() if name.startswith(MODULE)}


def restore(network: Network, tensors: Mapping[str, Tensor]) -> Network:
    """Load the tensors that training returned (`run_job`) into a network of the same shape, and return it."""
    found = network.load_state_dict(network_tensors(tensors), strict=False)  # shared tensors are saved once
    missing = set(found.missing_keys) & {name for name, _ in network.named_parameters()}
    assert not missing | set(found.unexpected_keys), f"the checkpoint belongs to another network: {found}"
    return network


def save_records(out: Path, metrics: dict[str, Any], card: str, tokenizer: Tokenizer | None = None) -> None:
    """Write the files of a model folder besides the weights: metrics, model card and, if given, tokenizer."""
    write_json(out / "metrics.json", metrics)
    (out / "README.md").write_text(card, encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save(out / TOKENIZER)


def summarize(
    metrics: dict[str, Any],
    examples: str,
    rows: int,
    unit: str,
    facts: Mapping[str, JsonValue] | None = None,
    notes: dict[str, int] | None = None,
) -> Summary:
    """Return the stage's summary: examples in, and `rows` of `unit` (parameters, labels or words) out."""
    return Summary(
        rows_in=metrics["examples"],
        unit_in=f"{examples} in {counted(metrics['epochs'], 'epochs')}",
        rows=rows,
        unit=unit,
        notes=notes or {},
        facts={**(facts or {}), **select_facts(metrics)},
    )


def select_facts(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics without their curves."""
    return {name: value for name, value in metrics.items() if name not in CURVES}


def describe_training(metrics: dict[str, Any], examples: str) -> str:
    """Return the model card's sentence on training: examples, epochs, time and losses."""
    losses = f"training loss {metrics['loss']:.4f} in the last epoch"
    if "validation_loss" in metrics:
        losses += f", validation loss {metrics['validation_loss']:.4f}"
    return (
        f"Trained with Lexloom on {counted(metrics['examples'], examples)}"
        f" ({counted(metrics['epochs'], 'epochs')}) in {metrics['seconds']:.1f} seconds: {losses}."
    )


GENERATE = """```python
from lexloom import Sampling, load_language_model

model = load_language_model("this folder")
for (piece,) in model.generate(["The people"], Sampling(max_tokens=60, temperature=0.8, top_p=0.95)):
    print(piece, end="", flush=True)
```
"""  # of a language model's card


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
