"""Defaults of a transformer's training: the presets, the sizes of plans, and the values for fine-tuning."""

from typing import Any, Literal

from lexloom.models.transformer.config import TransformerConfig

Preset = Literal["auto", "tiny", "char", "small"]
PRESETS: dict[Preset, dict[str, Any]] = {
    # 0.8M parameters besides the vocabulary's: a minute on two cores
    "tiny": {
        "layers": 4,
        "width": 128,
        "heads": 2,
        "context": 64,
        "tie_embeddings": False,
        "dropout": 0.0,
        "epochs": 2,
        "batch_size": 32,
        "matrix_learning_rate": 0.04,
        "learning_rate": 0.01,
        "momentum": 0.85,
    },
    # 10.6M, for characters or bytes: minutes on a GPU
    "char": {
        "layers": 6,
        "width": 384,
        "heads": 6,
        "context": 256,
        "tie_embeddings": False,
        "dropout": 0.2,
        "epochs": 20,
        "batch_size": 64,
        "matrix_learning_rate": 0.02,
        "learning_rate": 0.003,
        "momentum": 0.95,
    },
    # 124M with GPT-2's vocabulary, for gigabytes of text: hours on GPUs
    "small": {
        "layers": 12,
        "width": 768,
        "heads": 12,
        "context": 1024,
        "tie_embeddings": True,
        "dropout": 0.0,
        "epochs": 1,
        "batch_size": 512,
        "micro_batch": 16,
        "matrix_learning_rate": 0.02,
        "learning_rate": 0.003,
        "momentum": 0.95,
    },
}

# to continue a pretrained model: transformers' defaults, with a warm-up
FINE_TUNING: dict[str, Any] = {
    "dropout": 0.0,
    "batch_size": 8,
    "optimizer": "adamw",
    "learning_rate": 5e-5,
    "momentum": 0.95,
    "warm_up": 0.05,
    "decay": 0.95,
}
FINE_TUNING_EPOCHS = 3  # maximum of a plan, and the default with max_steps
LORA_LEARNING_RATE = 2e-4  # adapters start at zero, and need higher learning rates than full fine-tuning
# what the folder of a pretrained model determines
ARCHITECTURE = ("preset", "layers", "width", "heads", "kv_heads", "ffn_dim", "style", "tie_embeddings")


def fine_tuning_defaults(given: dict[str, Any], length: bool) -> dict[str, Any]:
    """Return the defaults of training that continues a pretrained model; `length`: see `defaults`."""
    lora = {} if given.get("lora_rank") is None else {"learning_rate": LORA_LEARNING_RATE}
    defaults = FINE_TUNING | lora | ({"epochs": FINE_TUNING_EPOCHS} if length else {})
    rate = given.get("learning_rate") or defaults["learning_rate"]
    return defaults | {"matrix_learning_rate": rate}  # one rate for all parameters


# (layers, width) of the sizes that a plan chooses from, with heads of 64: 0.8M to 85M parameters in blocks
SIZES = ((4, 128), (4, 192), (6, 192), (6, 256), (6, 384), (8, 512), (12, 768))
HEAD_WIDTH = 64


def candidate_sizes(given: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the sizes of `SIZES`, with given values in place of theirs, in order of cost.

    Raises:
        ValueError: none of them fits the given values.
    """
    shape = {name: given[name] for name in ("kv_heads", "ffn_dim", "style") if name in given}
    sizes: list[dict[str, Any]] = []
    problem: ValueError | None = None
    for layers, width in SIZES:
        values = {"layers": given.get("layers", layers), "width": given.get("width", width)}
        values["heads"] = given.get("heads") or largest_divisor(values["width"])
        try:
            TransformerConfig(vocabulary=1, **shape, **values)
        except ValueError as error:
            problem = error
        else:
            sizes += [values] if values not in sizes else []
    if not sizes and problem is not None:
        raise problem
    return sizes


def largest_divisor(width: int) -> int:
    """Return the number of heads of a width: the largest divisor that leaves them at least 64 wide."""
    most = max(1, width // HEAD_WIDTH)
    return next(heads for heads in range(most, 0, -1) if width % heads == 0)
