"""Reads a pretrained decoder: a folder of GPT-2, Llama, Qwen2 or Qwen3 in the format of transformers.

Its weights are copied into Lexloom's own network, which implements these architectures. Training, generation,
evaluation and export therefore work as for any other model, and transformers is not needed. Only safetensors
are read.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lexloom.models.tokenizer.tokenizer import Tokenizer
from lexloom.models.transformer.config import Architecture, TransformerConfig
from lexloom.models.transformer.hf_io import CLASSES, HF_CONFIG, ROPE_SCALING, assign_tensors
from lexloom.models.transformer.model import Transformer

WEIGHTS = "model*.safetensors"  # other names are of other formats
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")  # constants in files of older versions
ROPE_BASE = 10_000.0  # the default of all these architectures
QWEN3_HEAD_WIDTH = 128
GELU_TANH = ("gelu_new", "gelu_pytorch_tanh")
Values = Mapping[str, Any]


def read_pretrained_config(folder: Path) -> TransformerConfig:
    """Read the architecture of the decoder in a folder.

    Raises:
        FileNotFoundError: `config.json` is missing.
        ValueError: it is damaged, or the architecture or one of its options is not supported.
    """
    path = folder / HF_CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {folder} does not contain a pretrained decoder")
    try:
        values = json.loads(path.read_bytes())
        kind = values.get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a JSON object ({error}): download it again") from None
    if kind not in get_args(Architecture):
        raise ValueError(
            f"{path} describes a model of the type {kind!r}, which Lexloom can't train: use one of the types"
            f" {', '.join(CLASSES)}"
        )
    check_options(path, values, kind)
    try:
        return (read_gpt2 if kind == "gpt2" else read_modern)(values, kind)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} does not describe a {kind} model ({error}): download it again") from None
    except ValueError as error:
        raise ValueError(f"{path} describes a model that Lexloom can't train: {error}") from None


def check_options(path: Path, values: Values, kind: str) -> None:
    """Raise ValueError if an option changes the computation in a way that the network does not implement."""
    scaling = rope_values(values)
    name, usual = ("activation_function", "gelu_new") if kind == "gpt2" else ("hidden_act", "silu")
    activation = values.get(name, usual)
    for name, value, supported in (
        ("quantization_config", values.get("quantization_config") is not None, False),
        ("the activation", activation, GELU_TANH if kind == "gpt2" else "silu"),
        ("scale_attn_weights", values.get("scale_attn_weights", True), True),
        ("scale_attn_by_inverse_layer_idx", values.get("scale_attn_by_inverse_layer_idx", False), False),
        ("mlp_bias", values.get("mlp_bias", False), False),
        ("use_sliding_window", values.get("use_sliding_window", False), False),
        ("partial_rotary_factor", scaling.get("partial_rotary_factor", 1.0), 1.0),
        ("rope_type", scaling.get("rope_type", scaling.get("type", "default")), ("default", "llama3")),
    ):
        if value != supported and not (isinstance(supported, tuple) and value in supported):
            raise ValueError(
                f"{path}: {name} is {value!r}, which Lexloom does not support: use another model"
            )


def rope_values(values: Values) -> Values:
    """Return the parameters of rotary embeddings, which have another name in older files."""
    return values.get("rope_parameters") or values.get("rope_scaling") or {}


def read_gpt2(values: Values, kind: Architecture) -> TransformerConfig:
    return TransformerConfig(
        vocabulary=values["vocab_size"],
        context=values["n_positions"],
        layers=values["n_layer"],
        width=values["n_embd"],
        heads=values["n_head"],
        ffn_dim=values.get("n_inner") or 0,
        style="gpt2",
        tie_embeddings=values.get("tie_word_embeddings", True),
        norm_epsilon=values.get("layer_norm_epsilon", 1e-5),
    )


def read_modern(values: Values, kind: Architecture) -> TransformerConfig:
    heads, biases, rope = (
        values["num_attention_heads"],
        values.get("attention_bias", False),
        rope_values(values),
    )
    scaled = rope.get("rope_type", rope.get("type")) == "llama3"
    return TransformerConfig(
        vocabulary=values["vocab_size"],
        context=values["max_position_embeddings"],
        layers=values["num_hidden_layers"],
        width=values["hidden_size"],
        heads=heads,
        kv_heads=values.get("num_key_value_heads") or heads,
        ffn_dim=values["intermediate_size"],
        tie_embeddings=values.get("tie_word_embeddings", False),
        rope_base=rope.get("rope_theta", values.get("rope_theta", ROPE_BASE)),
        head_width=values.get("head_dim") or (QWEN3_HEAD_WIDTH if kind == "qwen3" else 0),
        qk_norm=kind == "qwen3",
        qkv_bias=kind == "qwen2" or biases,
        output_bias=kind != "qwen2" and biases,
        norm_epsilon=values.get("rms_norm_eps", 1e-6),
        rope_scaling=tuple(rope[name] for name in ROPE_SCALING) if scaled else None,
    )


def check_tokenizer(tokenizer: Tokenizer, config: TransformerConfig, folder: Path) -> None:
    """Raise ValueError if the tokenizer has ids for which the model has no embedding."""
    if tokenizer.size > config.vocabulary:
        raise ValueError(
            f"the tokenizer in {folder} has {tokenizer.size:,} ids, but the model's vocabulary has"
            f" {config.vocabulary:,}: use the tokenizer that belongs to the model"
        )


def load_pretrained(folder: Path, config: TransformerConfig) -> Transformer:
    """Load the decoder in `folder`, in float32; `config` is from `read_pretrained_config`, with any dropout.

    Raises:
        FileNotFoundError: there are no safetensors.
        ValueError: a file is damaged, or a tensor is missing, unknown or has another shape.
    """
    files = sorted(folder.glob(WEIGHTS))
    if not files:
        raise FileNotFoundError(f"{folder} has no weights as safetensors ({WEIGHTS})")
    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} can't be read ({error}): download it again") from None
    model = Transformer(config)
    assign_tensors(model, dict(rename(tensors, config)), folder / WEIGHTS, HF_CONFIG)
    return model


def rename(tensors: Mapping[str, Tensor], config: TransformerConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield a file's tensors by their names in the class with a head; skip the head if it is tied."""
    prefix = "model." if config.modern else "transformer."
    is_base = not any(name.startswith(prefix) for name in tensors)
    for name, tensor in tensors.items():
        if name.endswith(BUFFERS) or (config.tie_embeddings and name == "lm_head.weight"):
            continue
        yield (f"{prefix}{name}" if is_base and name != "lm_head.weight" else name), tensor
