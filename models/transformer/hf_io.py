"""Saves and loads a transformer; the folder can also be loaded by `AutoModelForCausalLM`, `AutoTokenizer` and
`pipeline` of transformers.

`model.safetensors` and `config.json` have the format of Qwen3, Qwen2, Llama or GPT-2; `lexloom.json` is
Lexloom's own description. Weights are unchanged except for their names; GPT-2 stores matrices transposed, and
query, key and value in one. `export_tokenizer` adds the files that transformers needs for text.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from lexloom.models.transformer.config import Architecture, TransformerConfig
from lexloom.models.transformer.model import Transformer

if TYPE_CHECKING:  # loading a model only requires torch
    from lexloom.models.tokenizer.tokenizer import Tokenizer

FORMAT = 1
DESCRIPTION, WEIGHTS, HF_CONFIG = "lexloom.json", "model.safetensors", "config.json"
GENERATION_CONFIG = "generation_config.json"
LONGEST_TEXT = 2048  # default limit of generation in transformers, in tokens, including the prompt
WEIGHT, WEIGHT_AND_BIAS = ("weight",), ("weight", "bias")
# class of transformers by model_type
CLASSES: dict[Architecture, str] = {
    "qwen3": "Qwen3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
ROPE_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


class TensorEntry(NamedTuple):
    """A tensor of the file, and the parameters that are concatenated (and transposed) in it."""

    name: str
    parts: tuple[str, ...]
    transposed: bool = False


def save(model: Transformer, folder: Path, details: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Write the three files, in float32; `details` are added to `lexloom.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    parameters = model.state_dict()
    tensors: dict[str, Tensor] = {}
    for entry in tensor_entries(model.config):
        tensor = torch.cat([parameters[part].float().cpu() for part in entry.parts])
        tensors[entry.name] = (tensor.T if entry.transposed else tensor).contiguous()
    # not save_file, whose files are only readable by their owner; a store is shared
    (folder / WEIGHTS).write_bytes(safetensors_bytes(tensors, metadata={"format": "pt"}))
    write_json(folder / HF_CONFIG, hf_config(model.config))
    own = {"model": "transformer", "format": FORMAT, "config": asdict(model.config), **details}
    write_json(folder / DESCRIPTION, own)


def export_tokenizer(
    tokenizer: "Tokenizer", config: TransformerConfig, folder: Path, *, nfc: bool = False
) -> None:
    """Write the files that transformers needs to encode prompts and generate text.

    With `nfc`, prompts are normalized to Unicode NFC, as the training text was. `generation_config.json`
    limits generation to the tokenizer's ids (the vocabulary may be rounded up) and to the context.
    """
    from lexloom.models.tokenizer.hf_export import export_hugging_face  # only torch is needed to load

    export_hugging_face(tokenizer, folder, config.context, nfc=nfc)
    end_of_text = tokenizer.end_of_text
    beyond = list(range(tokenizer.size, config.vocabulary))
    generation = {
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "pad_token_id": end_of_text,
        "max_length": min(config.context, LONGEST_TEXT),
        **({"suppress_tokens": beyond} if beyond else {}),
    }
    write_json(folder / GENERATION_CONFIG, generation)


def load(folder: Path) -> Transformer:
    """Load what `save` wrote, in eval mode.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the folder has another kind of model, or a file is damaged or does not match the others.
    """
    model = Transformer(read_config(folder))
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {folder} does not contain a complete model")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} can't be read ({error}): train or export the model again") from None
    assign_tensors(model, tensors, path, DESCRIPTION)
    return model.eval()


def assign_tensors(model: Transformer, tensors: Mapping[str, Tensor], path: Path, description: str) -> None:
    """Copy tensors, by their names in the file, to a model's parameters.

    Error messages name `path`, the file of the tensors, and `description`, the file with the shapes. Raises
    ValueError if a tensor is missing, unknown or has another shape.
    """
    named = {entry.name: entry for entry in tensor_entries(model.config)}
    if named.keys() != tensors.keys():
        differing = sorted(named.keys() ^ tensors.keys())[:3]
        raise ValueError(
            f"{path} does not match {description}: it has missing or unknown tensors, {', '.join(differing)}"
        )
    parameters = model.state_dict()
    for name, entry in named.items():
        tensor = tensors[name].T if entry.transposed else tensors[name]
        shapes = [parameters[part].shape for part in entry.parts]
        expected = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        if tensor.shape != expected:
            raise ValueError(
                f"{path}: {name} has the shape {tuple(tensor.shape)}, but {description} requires {expected}"
            )
        for part, piece in zip(entry.parts, tensor.split([shape[0] for shape in shapes]), strict=True):
            parameters[part].copy_(piece)


def read_config(folder: Path) -> TransformerConfig:
    path = folder / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {folder} does not contain a transformer made by Lexloom")
    try:
        description = json.loads(path.read_bytes())
        if description["model"] != "transformer":
            raise ValueError(f"the model is a {description['model']}")
        if description["format"] != FORMAT:
            raise ValueError(
                f"its format is {description['format']}, but this version of Lexloom reads {FORMAT}"
            )
        return TransformerConfig(**description["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not describe a transformer ({error})") from None


def tensor_entries(config: TransformerConfig) -> Iterator[TensorEntry]:
    yield from (modern_entries if config.modern else gpt2_entries)(config)


def modern_entries(config: TransformerConfig) -> Iterator[TensorEntry]:
    yield TensorEntry("model.embed_tokens.weight", ("embedding.weight",))
    for layer in range(config.layers):
        norms = (("q_norm", "query_norm"), ("k_norm", "key_norm")) if config.qk_norm else ()
        for hf_name, own_name, kinds in (
            ("input_layernorm", "attention_norm", WEIGHT),
            ("self_attn.q_proj", "attention.query", WEIGHT_AND_BIAS if config.qkv_bias else WEIGHT),
            ("self_attn.k_proj", "attention.key", WEIGHT_AND_BIAS if config.qkv_bias else WEIGHT),
            ("self_attn.v_proj", "attention.value", WEIGHT_AND_BIAS if config.qkv_bias else WEIGHT),
            *((f"self_attn.{name}", f"attention.{own}", WEIGHT) for name, own in norms),
            ("self_attn.o_proj", "attention.output", WEIGHT_AND_BIAS if config.output_bias else WEIGHT),
            ("post_attention_layernorm", "feed_forward_norm", WEIGHT),
            ("mlp.gate_proj", "feed_forward.gate", WEIGHT),
            ("mlp.up_proj", "feed_forward.up", WEIGHT),
            ("mlp.down_proj", "feed_forward.down", WEIGHT),
        ):
            for kind in kinds:
                yield TensorEntry(
                    f"model.layers.{layer}.{hf_name}.{kind}", (f"blocks.{layer}.{own_name}.{kind}",)
                )
    yield TensorEntry("model.norm.weight", ("final_norm.weight",))
    if not config.tie_embeddings:
        yield TensorEntry("lm_head.weight", ("head.weight",))


def gpt2_entries(config: TransformerConfig) -> Iterator[TensorEntry]:
    yield TensorEntry("transformer.wte.weight", ("embedding.weight",))
    yield TensorEntry("transformer.wpe.weight", ("position.weight",))
    for layer in range(config.layers):
        for hf_name, own_name in (
            ("ln_1", ("attention_norm",)),
            ("attn.c_attn", ("attention.query", "attention.key", "attention.value")),
            ("attn.c_proj", ("attention.output",)),
            ("ln_2", ("feed_forward_norm",)),
            ("mlp.c_fc", ("feed_forward.up",)),
            ("mlp.c_proj", ("feed_forward.down",)),
        ):
            for kind in WEIGHT_AND_BIAS:
                parts = tuple(f"blocks.{layer}.{part}.{kind}" for part in own_name)
                matrix = kind == "weight" and not hf_name.startswith("ln")
                yield TensorEntry(f"transformer.h.{layer}.{hf_name}.{kind}", parts, transposed=matrix)
    for kind in WEIGHT_AND_BIAS:
        yield TensorEntry(f"transformer.ln_f.{kind}", (f"final_norm.{kind}",))
    if not config.tie_embeddings:
        yield TensorEntry("lm_head.weight", ("head.weight",))


def hf_config(config: TransformerConfig) -> dict[str, Any]:
    """Return `config.json` as transformers reads it."""
    common = {
        "architectures": [CLASSES[config.architecture]],
        "model_type": config.architecture,
        "vocab_size": config.vocabulary,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": config.end_of_text,
        "eos_token_id": config.end_of_text,
        "dtype": "float32",
    }
    if config.modern:
        return {
            "hidden_size": config.width,
            "intermediate_size": config.ffn_dim,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.kv_heads,
            "head_dim": config.head_width,
            "hidden_act": "silu",
            "max_position_embeddings": config.context,
            "rms_norm_eps": config.norm_epsilon,
            "rope_theta": config.rope_base,
            # Qwen2 always has these biases, and does not read this option
            **({} if config.architecture == "qwen2" else {"attention_bias": config.qkv_bias}),
            **({} if config.rope_scaling is None else {"rope_scaling": describe_rope_scaling(config)}),
            "attention_dropout": config.dropout,
            **common,
        }
    return {
        "n_embd": config.width,
        "n_inner": config.ffn_dim,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_positions": config.context,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_epsilon,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        **common,
    }


def describe_rope_scaling(config: TransformerConfig) -> dict[str, Any]:
    assert config.rope_scaling is not None
    numbers = dict(zip(ROPE_SCALING, config.rope_scaling, strict=True))
    return {"rope_type": "llama3", **numbers, ROPE_SCALING[-1]: int(config.rope_scaling[-1])}


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
