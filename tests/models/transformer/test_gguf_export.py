"""A transformer's GGUF file: tensors, hyperparameters and tokenizer equal those of the model folder.

The file is read by the package gguf and by transformers. Its tokenizer is rebuilt with `tokenizers` from the
tokens and merges in the file, as llama.cpp does.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from tokenizers import Tokenizer as Rebuilt
from tokenizers import models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

from lexloom.models.normalization import Normalization
from lexloom.models.tokenizer.bpe_ranks import PUBLISHED
from lexloom.models.tokenizer.bpe_training import train_byte_pairs
from lexloom.models.tokenizer.tokenizer import BytePair, Tokenizer
from lexloom.models.transformer.gguf_export import (
    NORMAL,
    character_merges,
    describe_differences,
    describe_tokenizer,
    export_gguf,
)
from lexloom.models.transformer.hf_io import save, write_json
from lexloom.models.transformer.model import Transformer, TransformerConfig
from tests.models.tokenizer.test_tokenizer import END, TEXT, TINY, compact
from tests.models.transformer.test_hf_export import PROMPTS, gpt2

CONTEXT, BEYOND = 24, 5  # ids of the model that the tokenizer does not have
TOKENIZERS = {
    "characters": lambda: Tokenizer.of_characters(TEXT),
    "bytes": Tokenizer.of_bytes,
    "own byte pairs": lambda: Tokenizer(train_byte_pairs([TEXT * 3], 300)),
    "compact gpt2": lambda: compact(gpt2(), TEXT),
}
CASES = [
    ("characters", {"style": "modern", "kv_heads": 1}),
    ("bytes", {"style": "modern", "tie_embeddings": True}),
    ("own byte pairs", {"style": "gpt2"}),
    ("compact gpt2", {"style": "gpt2", "tie_embeddings": True}),
]
Exported = tuple[Transformer, Tokenizer, Path]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]} {case[1]['style']}")
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    kind, options = request.param
    folder = tmp_path_factory.mktemp("model")
    tokenizer = TOKENIZERS[kind]()
    torch.manual_seed(0)
    vocabulary = tokenizer.size + BEYOND
    config = TransformerConfig(
        vocabulary, CONTEXT, layers=2, width=32, heads=2, end_of_text=tokenizer.end_of_text, **options
    )
    model = Transformer(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    save(model, folder)
    tokenizer.save(folder / "tokenizer")
    assert len(export_gguf(folder, folder / "model.gguf")) == (kind == "characters")
    return model, tokenizer, folder


def fields(folder: Path) -> dict[str, Any]:
    reader = GGUFReader(folder / "model.gguf")
    return {name: field.contents() for name, field in reader.fields.items()}


def test_tensors_and_hyperparameters_are_the_models(exported: Exported) -> None:
    model, tokenizer, folder = exported
    config, found = model.config, fields(folder)
    architecture = "qwen3" if config.modern else "gpt2"
    assert found["general.architecture"] == architecture
    shape = {
        "context_length": CONTEXT,
        "embedding_length": config.width,
        "block_count": 2,
        "feed_forward_length": config.ffn_dim,
        "attention.head_count": 2,
        "vocab_size": tokenizer.size,
    }
    if config.modern:
        shape |= {"attention.head_count_kv": config.kv_heads, "attention.key_length": 16}
        shape |= {"rope.freq_base": 10_000.0}
    assert {name: found[f"{architecture}.{name}"] for name in shape} == shape
    tensors = {each.name: torch.tensor(each.data) for each in GGUFReader(folder / "model.gguf").tensors}
    assert torch.equal(tensors["token_embd.weight"], model.embedding.weight[: tokenizer.size])
    assert ("output.weight" in tensors) == (not config.tie_embeddings)
    written = sum(tensor.numel() for tensor in tensors.values())
    copies = 1 if config.tie_embeddings else 2
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert written == parameters - copies * BEYOND * config.width


def test_transformers_computes_the_same_logits(exported: Exported) -> None:
    model, tokenizer, folder = exported
    shape = AutoConfig.from_pretrained(folder)  # transformers does not read key_length from GGUF
    shape.vocab_size = tokenizer.size
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", config=shape)
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt)])
        with torch.no_grad():
            expected = model(ids)[..., : tokenizer.size]
            torch.testing.assert_close(theirs(ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_tokens_and_merges_encode_like_the_tokenizer(exported: Exported) -> None:
    _, tokenizer, folder = exported
    found = fields(folder)
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert found["tokenizer.ggml.bos_token_id"] == tokenizer.end_of_text
    assert found["tokenizer.ggml.eos_token_id"] == tokenizer.end_of_text
    assert found["tokenizer.ggml.add_bos_token"] is False
    tokens = found["tokenizer.ggml.tokens"]
    assert tokens[tokenizer.end_of_text] == "<|endoftext|>"
    others = [kind for kind in found["tokenizer.ggml.token_type"] if kind != NORMAL]
    assert others == [3], "the end-of-text token is a control token"
    vocabulary = {token: number for number, token in enumerate(tokens)}
    joined = {a + b: 0 for a, b in map(str.split, found["tokenizer.ggml.merges"])}
    pairs = [tuple(merge.split()) for merge in found["tokenizer.ggml.merges"]]
    parts = {token for pair in pairs for token in pair} | joined.keys()
    for token in sorted(parts - vocabulary.keys()):  # llama.cpp needs no ids for parts of tokens
        vocabulary[token] = len(vocabulary)
    rebuilt = Rebuilt(models.BPE(vocab=vocabulary, merges=pairs))
    rebuilt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # splits by GPT-2's pattern
    for text in [*PROMPTS, TEXT]:
        assert rebuilt.encode(text).ids == tokenizer.encode(text)


def test_merges_join_the_bytes_of_characters_only() -> None:
    characters = [text.encode() for text in "aé猫狗🎉"]
    assert character_merges(characters) == [
        (b"\xc3", b"\xa9"),
        (b"\xe7", b"\x8c"),
        (b"\xe7\x8c", b"\xab"),
        (b"\xe7", b"\x8b"),
        (b"\xe7\x8b", b"\x97"),
        (b"\xf0", b"\x9f"),
        (b"\xf0\x9f", b"\x8e"),
        (b"\xf0\x9f\x8e", b"\x89"),
    ]


def test_tokenizers_that_gguf_does_not_support_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"llama\.cpp does not know its pattern \\S"):
        describe_tokenizer(Tokenizer(BytePair("odd", TINY, r"\S+|\s+", END)))
    ranks = dict(TINY)
    for end in range(2, len("<|endoftext|>") + 1):
        ranks["<|endoftext|>"[:end].encode()] = len(ranks) + 1000
    with pytest.raises(ValueError, match=r"spelled <\|endoftext\|>"):
        describe_tokenizer(Tokenizer(BytePair("own", ranks, PUBLISHED["gpt2"].pattern, 5000)))


def test_differences_of_llama_cpp_are_named(tmp_path: Path) -> None:
    rules = {name: name in ("unicode_nfc", "lower") for name in Normalization.model_fields}
    rules["segment"] = "spaces"
    write_json(tmp_path / "lexloom.json", {"model": "transformer", "normalization": rules})
    (bytes_note,) = describe_differences(Tokenizer.of_bytes(), tmp_path)
    assert bytes_note.endswith("(unicode_nfc, lower)")
    notes = describe_differences(Tokenizer.of_characters("a"), tmp_path)
    assert "skips unknown characters" in notes[0]
    for name, said in (("cl100k_base", "line feed"), ("o200k_base", "ASCII")):
        encoding = BytePair(name, TINY, PUBLISHED[name].pattern, END)
        assert said in describe_differences(Tokenizer(encoding), tmp_path)[0]
        assert describe_tokenizer(Tokenizer(encoding)).pre != "gpt-2"
