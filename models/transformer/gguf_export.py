"""Export of a transformer to GGUF, the file format of llama.cpp, Ollama and others.

Tensors are float32. Embedding rows without a token id are left out. Names follow
llama.cpp's architectures `qwen3`, `qwen2`, `llama` and `gpt2`.

llama.cpp's tokenizer "gpt2" represents every kind of tokenizer that Lexloom trains: it splits text by a
pattern, spells each piece as bytes, and merges neighbouring tokens in order of rank. A tokenizer of bytes
has no merges. The merges of a tokenizer of characters join the bytes of each character. They can't join parts
of two characters, because the first byte of a character in UTF-8 is never one of its later bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lexloom.models.language_model import TOKENIZER
from lexloom.models.normalization import active_rules, read_normalization
from lexloom.models.tokenizer.bpe_ranks import (
    LETTERS,
    PUBLISHED,
    from_byte_letters,
    list_merges,
    to_byte_letters,
)
from lexloom.models.tokenizer.hf_export import to_oniguruma
from lexloom.models.tokenizer.pretrained import Pretrained
from lexloom.models.tokenizer.tokenizer import END_OF_TEXT, BytePair, Characters, Tokenizer
from lexloom.models.transformer.config import TransformerConfig
from lexloom.models.transformer.hf_io import load
from lexloom.models.transformer.model import Transformer

if TYPE_CHECKING:
    from gguf import GGUFWriter

# llama.cpp's names for the patterns
PUBLISHED_NAMES = {"gpt2": "gpt-2", "cl100k_base": "llama-bpe", "o200k_base": "gpt-4o"}
PRE_TOKENIZERS = {
    **{PUBLISHED[name].pattern: pre for name, pre in PUBLISHED_NAMES.items()},
    **{to_oniguruma(PUBLISHED[name].pattern): pre for name, pre in PUBLISHED_NAMES.items()},
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+": "qwen2",
}
ANY_PATTERN = "gpt-2"  # where no token is longer than a character, the pattern has no effect
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # types of tokens
NEVER = [f"{LETTERS[0] * 2} {LETTERS[0] * 2}"]  # a merge of tokens that don't occur; the list can't be empty
BLOCK_TENSORS = {
    "attention_norm": "attn_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.query_norm": "attn_q_norm",
    "attention.key_norm": "attn_k_norm",
    "attention.output": "attn_output",
    "feed_forward_norm": "ffn_norm",
    "feed_forward.gate": "ffn_gate",
    "feed_forward.up": "ffn_up",
    "feed_forward.down": "ffn_down",
}
QKV = ("attention.query", "attention.key", "attention.value")  # one tensor in GPT-2


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as llama.cpp describes it: texts and types by id, merges by rank, name of the pattern."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str


def export_gguf(folder: Path, file: Path) -> list[str]:
    """Write the transformer in `folder` to a file; return sentences on what llama.cpp does differently.

    Raises:
        ModuleNotFoundError: the package gguf is not installed.
        FileNotFoundError, ValueError: see `lexloom.models.transformer.hf_io.load`; or llama.cpp has no such
            tokenizer.
    """
    from gguf import GGUFWriter, LlamaFileType

    model, tokenizer = load(folder), Tokenizer.load(folder / TOKENIZER)
    vocabulary = describe_tokenizer(tokenizer)
    if model.config.modern and model.config.output_bias:
        raise ValueError(
            "llama.cpp's architectures have no bias in the attention output: use the model as it is"
        )
    writer = GGUFWriter(file, model.config.architecture)
    writer.add_name(folder.name)
    writer.add_file_type(LlamaFileType.ALL_F32)
    add_shape(writer, model.config)
    writer.add_vocab_size(tokenizer.size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(tokenizer.end_of_text)  # stands for an empty prompt
    writer.add_eos_token_id(tokenizer.end_of_text)
    writer.add_add_bos_token(False)
    for name, tensor in gguf_tensors(model, tokenizer.size):
        writer.add_tensor(name, np.ascontiguousarray(tensor.float().numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return describe_differences(tokenizer, folder)


def add_shape(writer: "GGUFWriter", config: TransformerConfig) -> None:
    """Add the architecture's hyperparameters."""
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.heads)
    if config.modern:
        writer.add_head_count_kv(config.kv_heads)
        writer.add_key_length(config.head_width)
        writer.add_value_length(config.head_width)
        writer.add_rope_dimension_count(config.head_width)
        writer.add_rope_freq_base(config.rope_base)
        writer.add_layer_norm_rms_eps(config.norm_epsilon)
    else:
        writer.add_layer_norm_eps(config.norm_epsilon)


def gguf_tensors(model: Transformer, vocabulary: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors by their names in GGUF; the embedding and the head have only `vocabulary` rows."""
    config, parameters = model.config, model.state_dict()
    yield "token_embd.weight", parameters["embedding.weight"][:vocabulary]
    if not config.modern:
        yield "position_embd.weight", parameters["position.weight"]
    if config.rope_scaling is not None:
        yield (
            "rope_freqs.weight",
            replace(config, rope_scaling=None).rotary_frequencies() / (config.rotary_frequencies()),
        )
    kinds = ("weight", "bias")
    for layer in range(config.layers):
        if not config.modern:
            for kind in kinds:
                parts = [parameters[f"blocks.{layer}.{part}.{kind}"] for part in QKV]
                yield f"blk.{layer}.attn_qkv.{kind}", torch.cat(parts)
        for own_name, name in BLOCK_TENSORS.items():
            for kind in kinds:
                own = f"blocks.{layer}.{own_name}.{kind}"
                if own in parameters and (config.modern or own_name not in QKV):
                    tensor = parameters[own]
                    if config.architecture == "llama" and own_name in QKV[:2]:
                        tensor = interleave_halves(tensor, config.head_width)
                    yield f"blk.{layer}.{name}.{kind}", tensor
    for kind in kinds[:1] if config.modern else kinds:
        yield f"output_norm.{kind}", parameters[f"final_norm.{kind}"]
    if not config.tie_embeddings:
        yield "output.weight", parameters["head.weight"][:vocabulary]


def describe_tokenizer(tokenizer: Tokenizer) -> Vocabulary:
    """Describe a tokenizer for llama.cpp.

    Raises:
        ValueError: llama.cpp does not know its pattern, or two tokens have the same spelling.
    """
    encoding, names = tokenizer.encoding, tokenizer.display_names()
    if isinstance(encoding, Pretrained):
        names = [encoding.token_name(token) for token in range(tokenizer.size)]
    texts = [tokenizer.token_bytes(token) for token in range(tokenizer.size)]
    tokens = [to_byte_letters(text) if text else name for text, name in zip(texts, names, strict=True)]
    if len(set(tokens)) != len(tokens):
        raise ValueError(
            f"GGUF can't hold a vocabulary with a token that is spelled {END_OF_TEXT}, like the end-of-text"
            " token: train the tokenizer on text without it"
        )
    types = [NORMAL if text else UNUSED for text in texts]
    types[tokenizer.end_of_text] = CONTROL
    pre, pairs = ANY_PATTERN, list[tuple[bytes, bytes]]()
    match encoding:
        case BytePair():
            pairs, pre = list_merges(encoding.ranks), find_pre_tokenizer(encoding.pattern())
        case Pretrained(kind="byte-level"):
            pairs = read_merges(encoding)
            pre = find_pre_tokenizer(read_pattern(encoding)) if pairs else ANY_PATTERN
        case Pretrained(kind="sentencepiece"):
            raise ValueError(
                "Lexloom exports only byte-level tokenizers to GGUF, and this model's is SentencePiece's:"
                " convert the folder with convert_hf_to_gguf.py of llama.cpp"
            )
        case Characters() | Pretrained(kind="characters"):
            pairs = character_merges(texts)
    if isinstance(encoding, Pretrained):
        for token, added in encoding.added.items():
            types[token] = CONTROL if added["special"] else USER_DEFINED
    merges = [f"{to_byte_letters(left)} {to_byte_letters(right)}" for left, right in pairs]
    return Vocabulary(tokens, types, merges or NEVER, pre)


def interleave_halves(tensor: Tensor, head_width: int) -> Tensor:
    """Reorder the rows of each head, since llama.cpp's `llama` rotates (x[2i], x[2i + 1]), not halves."""
    heads = tensor.unflatten(0, (-1, 2, head_width // 2))  # (heads, half, D/2, ...)
    return heads.transpose(1, 2).flatten(0, 2)


def find_pre_tokenizer(pattern: str) -> str:
    """Return llama.cpp's name for a pattern. Raises ValueError if it does not know it."""
    if pattern not in PRE_TOKENIZERS:
        raise ValueError(f"GGUF can't hold the tokenizer: llama.cpp does not know its pattern {pattern[:60]}")
    return PRE_TOKENIZERS[pattern]


def read_pattern(encoding: Pretrained) -> str:
    """Return the pattern by which a `tokenizer.json` splits text; empty if it is not a single one."""
    pre_tokenizer = encoding.description["pre_tokenizer"] or {}
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    patterns = [step["pattern"].get("Regex", "") for step in steps if step.get("type") == "Split"]
    if any(step.get("type") == "ByteLevel" and step["use_regex"] for step in steps):
        patterns.append(PUBLISHED["gpt2"].pattern)
    return patterns[0] if len(patterns) == 1 else ""


def read_merges(encoding: Pretrained) -> list[tuple[bytes, bytes]]:
    """Return the merges of a `tokenizer.json`; in older files, a merge is a string with a space."""
    merges = encoding.description["model"]["merges"]
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    return [(from_byte_letters(left), from_byte_letters(right)) for left, right in pairs]


def character_merges(characters: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Return the merges that join the bytes of each character from the left; each merge once."""
    found = {
        (character[:end], character[end : end + 1]): None
        for character in characters
        for end in range(1, len(character))
    }
    return list(found)


def describe_differences(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """Return sentences on what llama.cpp does differently from Lexloom with this model."""
    notes = []
    if isinstance(tokenizer.encoding, Characters) or getattr(tokenizer.encoding, "kind", "") == "characters":
        notes.append("llama.cpp skips unknown characters in a prompt, which are an error in Lexloom")
    if tokenizer.encoding.pattern() == PUBLISHED["cl100k_base"].pattern:
        notes.append("llama.cpp splits a line feed from the spaces that follow it at the end of a prompt")
    if tokenizer.encoding.pattern() == PUBLISHED["o200k_base"].pattern:
        notes.append("llama.cpp's pattern for o200k_base is exact only for ASCII text")
    rules = read_normalization(folder)
    if active := active_rules(rules.model_dump() if rules else None):
        notes.append(f"llama.cpp does not normalize prompts as the training text was ({', '.join(active)})")
    return notes
