"""A transformer on disk: a folder that Lexloom loads, and transformers' `pipeline`, `AutoTokenizer` and
`AutoModelForCausalLM` too.

`model.safetensors` and `config.json` are Qwen3's ("modern") or GPT-2's; `lexloom.json` is Lexloom's own
description. The network is the same, number for number: only names differ, and GPT-2 keeps its matrices
transposed, and query, key and value in one. `export_tokenizer` adds what transformers needs for text.
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

from lexloom.models.transformer.model import LAYER_EPSILON, RMS_EPSILON, Transformer, TransformerConfig

if TYPE_CHECKING:  # weights can be read where torch is all there is
    from lexloom.models.tokenizer.tokenizer import Tokenizer

FORMAT = 1
DESCRIPTION, WEIGHTS, THEIR_CONFIG = "lexloom.json", "model.safetensors", "config.json"
GENERATION_CONFIG = "generation_config.json"


class Entry(NamedTuple):
    """A tensor of the file, and the parameters that it holds: one below the other, perhaps transposed."""

    name: str
    parts: tuple[str, ...]
    transposed: bool = False


def save(model: Transformer, folder: Path, details: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Writes the three files, float32; `details` go into `lexloom.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    parameters = model.state_dict()
    tensors: dict[str, Tensor] = {}
    for entry in entries(model.config):
        tensor = torch.cat([parameters[part].float().cpu() for part in entry.parts])
        tensors[entry.name] = (tensor.T if entry.transposed else tensor).contiguous()
    # not save_file: its files can be read by their owner alone, and a store is shared
    (folder / WEIGHTS).write_bytes(safetensors_bytes(tensors, metadata={"format": "pt"}))
    write_json(folder / THEIR_CONFIG, their_config(model.config))
    own = {"model": "transformer", "format": FORMAT, "config": asdict(model.config), **details}
    write_json(folder / DESCRIPTION, own)


def export_tokenizer(
    tokenizer: "Tokenizer", config: TransformerConfig, folder: Path, *, nfc: bool = False
) -> None:
    """Writes what transformers needs to encode prompts and generate text with the model of that config.

    `nfc`: the training text was in Unicode's composed form, so prompts are composed, too.

    `generation_config.json` limits generation: to the ids that the tokenizer has (a vocabulary may be rounded
    up), and to the context.
    """
    tokenizer.export_hugging_face(folder, config.context, nfc=nfc)
    end_of_text = tokenizer.end_of_text
    beyond = list(range(tokenizer.size, config.vocabulary))
    generation = {
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "pad_token_id": end_of_text,
        "max_length": config.context,
        **({"suppress_tokens": beyond} if beyond else {}),
    }
    write_json(folder / GENERATION_CONFIG, generation)


def load(folder: Path) -> Transformer:
    """Reads what `save` wrote.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the folder holds another kind of model, or a file is damaged or does not fit the others.
    """
    model = Transformer(read_config(folder))
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {folder} holds no whole model")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} can't be read ({error}): make the model again") from None
    named = {entry.name: entry for entry in entries(model.config)}
    if named.keys() != tensors.keys():
        strange = sorted(named.keys() ^ tensors.keys())[:3]
        raise ValueError(f"{path} has other tensors than {DESCRIPTION} describes: {', '.join(strange)}")
    parameters = model.state_dict()
    for name, entry in named.items():
        tensor = tensors[name].T if entry.transposed else tensors[name]
        shapes = [parameters[part].shape for part in entry.parts]
        expected = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        if tensor.shape != expected:
            raise ValueError(f"{path}: {name} is {tuple(tensor.shape)}, {DESCRIPTION} says {expected}")
        for part, piece in zip(entry.parts, tensor.split([shape[0] for shape in shapes]), strict=True):
            parameters[part].copy_(piece)
    return model.eval()


def read_config(folder: Path) -> TransformerConfig:
    path = folder / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {folder} holds no transformer that Lexloom made")
    try:
        description = json.loads(path.read_bytes())
        if description["model"] != "transformer":
            raise ValueError(f"it describes a {description['model']}")
        if description["format"] != FORMAT:
            raise ValueError(f"its format is {description['format']}, this Lexloom reads {FORMAT}")
        return TransformerConfig(**description["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} describes no transformer ({error})") from None


def entries(config: TransformerConfig) -> Iterator[Entry]:
    yield from (modern_entries if config.modern else gpt2_entries)(config)


def modern_entries(config: TransformerConfig) -> Iterator[Entry]:
    yield Entry("model.embed_tokens.weight", ("embedding.weight",))
    for layer in range(config.layers):
        for theirs, ours in (
            ("input_layernorm", "attention_norm"),
            ("self_attn.q_proj", "attention.query"),
            ("self_attn.k_proj", "attention.key"),
            ("self_attn.v_proj", "attention.value"),
            ("self_attn.q_norm", "attention.query_norm"),
            ("self_attn.k_norm", "attention.key_norm"),
            ("self_attn.o_proj", "attention.output"),
            ("post_attention_layernorm", "feed_forward_norm"),
            ("mlp.gate_proj", "feed_forward.gate"),
            ("mlp.up_proj", "feed_forward.up"),
            ("mlp.down_proj", "feed_forward.down"),
        ):
            yield Entry(f"model.layers.{layer}.{theirs}.weight", (f"blocks.{layer}.{ours}.weight",))
    yield Entry("model.norm.weight", ("final_norm.weight",))
    if not config.tie_embeddings:
        yield Entry("lm_head.weight", ("head.weight",))


def gpt2_entries(config: TransformerConfig) -> Iterator[Entry]:
    yield Entry("transformer.wte.weight", ("embedding.weight",))
    yield Entry("transformer.wpe.weight", ("position.weight",))
    for layer in range(config.layers):
        for theirs, ours in (
            ("ln_1", ("attention_norm",)),
            ("attn.c_attn", ("attention.query", "attention.key", "attention.value")),
            ("attn.c_proj", ("attention.output",)),
            ("ln_2", ("feed_forward_norm",)),
            ("mlp.c_fc", ("feed_forward.up",)),
            ("mlp.c_proj", ("feed_forward.down",)),
        ):
            for kind in ("weight", "bias"):
                parts = tuple(f"blocks.{layer}.{part}.{kind}" for part in ours)
                matrix = kind == "weight" and not theirs.startswith("ln")
                yield Entry(f"transformer.h.{layer}.{theirs}.{kind}", parts, transposed=matrix)
    for kind in ("weight", "bias"):
        yield Entry(f"transformer.ln_f.{kind}", (f"final_norm.{kind}",))
    if not config.tie_embeddings:
        yield Entry("lm_head.weight", ("head.weight",))


def their_config(config: TransformerConfig) -> dict[str, Any]:
    """`config.json` as transformers reads it."""
    common = {
        "vocab_size": config.vocabulary,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": config.end_of_text,
        "eos_token_id": config.end_of_text,
        "dtype": "float32",
    }
    if config.modern:
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "hidden_size": config.width,
            "intermediate_size": config.ffn_dim,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.kv_heads,
            "head_dim": config.head_width,
            "hidden_act": "silu",
            "max_position_embeddings": config.context,
            "rms_norm_eps": RMS_EPSILON,
            "rope_theta": config.rope_base,
            "attention_bias": False,
            "attention_dropout": config.dropout,
            **common,
        }
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": config.width,
        "n_inner": config.ffn_dim,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_positions": config.context,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": LAYER_EPSILON,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        **common,
    }


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
