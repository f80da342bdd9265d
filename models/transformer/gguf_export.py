"""Export of a transformer to GGUF, the file format of llama.cpp, Ollama and others.

Tensors are float32. Rows of the embedding that the tokenizer has no ids for are left out. Names follow
llama.cpp's architectures `qwen3` and `gpt2`.

llama.cpp's tokenizer "gpt2" represents every kind of tokenizer that Lexloom trains: it splits text by a
pattern, spells each piece as bytes, and merges neighbouring tokens in order of rank. Bytes have no merges.
The merges of characters join the bytes of each character. They can't join parts of two characters, because
the first byte of a character in UTF-8 is never one of its later bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lexloom.models.language_model import TOKENIZER
from lexloom.models.normalization import active_rules, read_normalization
from lexloom.models.tokenizer.bpe_ranks import LETTERS, PUBLISHED, list_merges, to_byte_letters
from lexloom.models.tokenizer.tokenizer import END_OF_TEXT, BytePair, Characters, Tokenizer
from lexloom.models.transformer.hf_io import load
from lexloom.models.transformer.model import LAYER_EPSILON, RMS_EPSILON, Transformer, TransformerConfig

if TYPE_CHECKING:
    from gguf import GGUFWriter

# llama.cpp's names of the patterns
PRE_TOKENIZERS = {
    PUBLISHED["gpt2"].pattern: "gpt-2",
    PUBLISHED["cl100k_base"].pattern: "llama-bpe",
    PUBLISHED["o200k_base"].pattern: "gpt-4o",
}
ANY_PATTERN = "gpt-2"  # where no token is longer than a character, the pattern has no effect
NORMAL, CONTROL, UNUSED = 1, 3, 5  # types of tokens
NEVER = [f"{LETTERS[0] * 2} {LETTERS[0] * 2}"]  # a merge of tokens that don't occur; a list can't be empty
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
    """Write the transformer in `folder` to a file; return what llama.cpp does differently, as sentences.

    Raises:
        ModuleNotFoundError: the package gguf is not installed.
        FileNotFoundError, ValueError: see `lexloom.models.transformer.hf_io.load`; or llama.cpp has no such
            tokenizer.
    """
    from gguf import GGUFWriter, LlamaFileType

    model, tokenizer = load(folder), Tokenizer.load(folder / TOKENIZER)
    vocabulary = describe_tokenizer(tokenizer)
    writer = GGUFWriter(file, "qwen3" if model.config.modern else "gpt2")
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
        writer.add_rope_freq_base(config.rope_base)
        writer.add_layer_norm_rms_eps(RMS_EPSILON)
    else:
        writer.add_layer_norm_eps(LAYER_EPSILON)


def gguf_tensors(model: Transformer, vocabulary: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors by their names in GGUF; of the embedding and the head only `vocabulary` rows."""
    config, parameters = model.config, model.state_dict()
    yield "token_embd.weight", parameters["embedding.weight"][:vocabulary]
    if not config.modern:
        yield "position_embd.weight", parameters["position.weight"]
    kinds = ("weight",) if config.modern else ("weight", "bias")
    for layer in range(config.layers):
        if not config.modern:
            for kind in kinds:
                parts = [parameters[f"blocks.{layer}.{part}.{kind}"] for part in QKV]
                yield f"blk.{layer}.attn_qkv.{kind}", torch.cat(parts)
        for own_name, name in BLOCK_TENSORS.items():
            for kind in kinds:
                own = f"blocks.{layer}.{own_name}.{kind}"
                if own in parameters and (config.modern or own_name not in QKV):
                    yield f"blk.{layer}.{name}.{kind}", parameters[own]
    for kind in kinds:
        yield f"output_norm.{kind}", parameters[f"final_norm.{kind}"]
    if not config.tie_embeddings:
        yield "output.weight", parameters["head.weight"][:vocabulary]


def describe_tokenizer(tokenizer: Tokenizer) -> Vocabulary:
    """Describe a tokenizer for llama.cpp.

    Raises:
        ValueError: llama.cpp does not know its pattern, or two tokens have one spelling.
    """
    names = tokenizer.display_names()
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
    match tokenizer.encoding:
        case BytePair() as encoding:
            pairs = list_merges(encoding.ranks)
            if encoding.pattern() not in PRE_TOKENIZERS:
                raise ValueError(
                    f"GGUF can't hold the tokenizer {tokenizer.name}: llama.cpp does not know its pattern"
                )
            pre = PRE_TOKENIZERS[encoding.pattern()]
        case Characters():
            pairs = character_merges(texts)
    merges = [f"{to_byte_letters(left)} {to_byte_letters(right)}" for left, right in pairs]
    return Vocabulary(tokens, types, merges or NEVER, pre)


def character_merges(characters: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Return the merges that join the bytes of each character from the left; each merge once."""
    found = {
        (character[:end], character[end : end + 1]): None
        for character in characters
        for end in range(1, len(character))
    }
    return list(found)


def describe_differences(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """Return what llama.cpp does differently from Lexloom with this model, as sentences."""
    notes = []
    if isinstance(tokenizer.encoding, Characters):
        notes.append("llama.cpp skips unknown characters of a prompt, which are an error in Lexloom")
    if tokenizer.encoding.pattern() == PUBLISHED["cl100k_base"].pattern:
        notes.append("llama.cpp splits a line feed from spaces that follow it at the end of a prompt")
    if tokenizer.encoding.pattern() == PUBLISHED["o200k_base"].pattern:
        notes.append("llama.cpp's pattern for o200k_base is only exact for ASCII text")
    rules = read_normalization(folder)
    if active := active_rules(rules.model_dump() if rules else None):
        notes.append(f"llama.cpp does not normalize prompts as the training text was ({', '.join(active)})")
    return notes
