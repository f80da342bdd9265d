"""A transformer's folder loaded by transformers: ids, logits and greedy text equal Lexloom's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from lexloom.models.sampling import Sampling, sample_text
from lexloom.models.tokenizer.bpe_ranks import PUBLISHED, read_ranks
from lexloom.models.tokenizer.bpe_training import train_byte_pairs
from lexloom.models.tokenizer.hf_export import export_hugging_face
from lexloom.models.tokenizer.pretrained import read_pretrained_tokenizer
from lexloom.models.tokenizer.tokenizer import BytePair, Tokenizer
from lexloom.models.transformer.gguf_export import describe_tokenizer
from lexloom.models.transformer.hf_io import export_tokenizer, save
from lexloom.models.transformer.model import CachedDecoder, Transformer, TransformerConfig
from tests.models.tokenizer.test_bpe_ranks import GPT2
from tests.models.tokenizer.test_tokenizer import END, PATTERN, TEXT, TINY, compact

CONTEXT = 24
BEYOND = 5  # ids of the model that the tokenizer does not have
PROMPTS = ["The cat", "  the  cat", "\n\n  Twice", "ünïcödé, 猫 🎉", "cat ", "t", "\t"]
Both = tuple[Transformer, Tokenizer, Path]


def gpt2() -> BytePair:
    ranks = read_ranks(GPT2.read_bytes(), "vocab.bpe")
    return BytePair("gpt2", ranks, PATTERN, PUBLISHED["gpt2"].end_of_text)


TOKENIZERS = {
    "characters": lambda: Tokenizer.of_characters(TEXT),
    "bytes": Tokenizer.of_bytes,
    "own byte pairs": lambda: Tokenizer(BytePair("own", TINY, PATTERN, END)),
    "trained byte pairs": lambda: Tokenizer(train_byte_pairs([TEXT * 3], 300)),
    # the patterns of these encodings, with few ranks
    "cl100k_base": lambda: Tokenizer(BytePair("own", TINY, PUBLISHED["cl100k_base"].pattern, END)),
    "o200k_base": lambda: Tokenizer(BytePair("own", TINY, PUBLISHED["o200k_base"].pattern, END)),
    "compact gpt2": lambda: compact(gpt2(), TEXT),
    "gpt2": lambda: Tokenizer(gpt2()),
}
GPT2_STYLE = ("characters", "bytes", "trained byte pairs", "compact gpt2")
CASES = [*((kind, "modern") for kind in TOKENIZERS), *((kind, "gpt2") for kind in GPT2_STYLE)]


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    kind, style = request.param
    folder = tmp_path_factory.mktemp("model")
    tokenizer = TOKENIZERS[kind]()
    torch.manual_seed(0)
    model = Transformer(
        TransformerConfig(
            vocabulary=tokenizer.size + BEYOND,
            context=CONTEXT,
            layers=2,
            width=32,
            heads=2,
            style=style,
            end_of_text=tokenizer.end_of_text,
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
        model.head.weight[tokenizer.size :] *= 20  # so it is these ids that would be likeliest
    save(model, folder)
    export_tokenizer(tokenizer, model.config, folder)
    return model, tokenizer, folder


def greedy(model: Transformer, tokenizer: Tokenizer, prompt: str, tokens: int) -> str:
    sampling = Sampling(max_tokens=tokens, temperature=0, stop_at_end=True)  # like transformers
    pieces = sample_text(CachedDecoder(model), tokenizer, [prompt], sampling)
    return "".join(piece for (piece,) in pieces)


def test_pipeline_generates_the_same_text(exported: Both) -> None:
    model, tokenizer, folder = exported
    writer = pipeline("text-generation", str(folder))
    for prompt in [*PROMPTS[:4], ""]:
        read = max(1, len(tokenizer.encode(prompt)))  # an empty prompt stands for end of text
        expected = greedy(model, tokenizer, prompt, CONTEXT - read)
        (found,) = writer(prompt, do_sample=False)
        assert found["generated_text"] == prompt + expected
    one, other = writer(PROMPTS[:2], do_sample=False, batch_size=2, max_new_tokens=8)
    assert one[0]["generated_text"] == PROMPTS[0] + greedy(model, tokenizer, PROMPTS[0], 8)
    assert other[0]["generated_text"] == PROMPTS[1] + greedy(model, tokenizer, PROMPTS[1], 8)


def test_ids_logits_and_special_tokens_are_the_same(exported: Both) -> None:
    model, tokenizer, folder = exported
    theirs = AutoTokenizer.from_pretrained(folder)
    assert len(theirs) == tokenizer.size
    assert theirs.model_max_length == CONTEXT
    ends = {theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id}
    assert ends == {tokenizer.end_of_text}
    network: Any = AutoModelForCausalLM.from_pretrained(folder)
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        assert theirs(prompt)["input_ids"] == ids
        assert theirs.decode(ids) == prompt
        with torch.no_grad():
            logits = network(**theirs(prompt, return_tensors="pt")).logits[0, -1]
        torch.testing.assert_close(logits, CachedDecoder(model)([ids])[0], atol=1e-4, rtol=1e-4)
    assert theirs.decode([tokenizer.end_of_text], skip_special_tokens=True) == ""
    if tokenizer.name == "characters":
        for text in ("Q", "<|endoftext|>"):
            with pytest.raises(ValueError, match="is not one of"):
                tokenizer.encode(text)
            with pytest.raises(Exception, match="Missing"):
                theirs.encode(text)
    else:
        assert theirs.encode("<|endoftext|>Q") == tokenizer.encode("<|endoftext|>Q")


@pytest.mark.parametrize("kind", ["characters", "bytes", "trained byte pairs", "compact gpt2"])
def test_exported_tokenizers_are_read_for_continued_training(kind: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[kind]()
    export_hugging_face(tokenizer, tmp_path)
    again = Tokenizer(read_pretrained_tokenizer(tmp_path))
    assert (again.size, again.end_of_text) == (tokenizer.size, tokenizer.end_of_text)
    for prompt in PROMPTS:
        assert again.encode(prompt) == tokenizer.encode(prompt)
    assert (again.byte_lengths() == tokenizer.byte_lengths()).all()
    ours, theirs = describe_tokenizer(tokenizer), describe_tokenizer(again)
    assert (ours.tokens, ours.merges, ours.pre) == (theirs.tokens, theirs.merges, theirs.pre)


def test_end_of_text_ends_generation_at_the_same_token(tmp_path: Path) -> None:
    """With a model that generates 'b' after 'a', and end of text after 'b'."""
    tokenizer = Tokenizer.of_characters("ab")
    config = TransformerConfig(3, CONTEXT, 1, 8, 1, style="gpt2", end_of_text=tokenizer.end_of_text)
    model = Transformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.final_norm.weight.fill_(1)
        model.embedding.weight[:3, :3] = torch.eye(3)
        model.head.weight[1, 0] = model.head.weight[2, 1] = 1
    save(model, tmp_path)
    export_tokenizer(tokenizer, config, tmp_path)
    (found,) = pipeline("text-generation", str(tmp_path))("aa", do_sample=False)
    assert found["generated_text"] == "aa" + greedy(model, tokenizer, "aa", 9) == "aab"


def test_only_a_rounded_vocabulary_suppresses_ids(tmp_path: Path) -> None:
    tokenizer = Tokenizer.of_characters("abc")
    for vocabulary, expected in ((4, None), (6, [4, 5])):
        export_tokenizer(tokenizer, TransformerConfig(vocabulary, 8, 1, 8, 1), tmp_path)
        written = json.loads((tmp_path / "generation_config.json").read_text())
        assert written.get("suppress_tokens") == expected


def test_exported_tokenizer_applies_nfc(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["bytes"]()
    config = TransformerConfig(tokenizer.size, 8, 1, 8, 1)
    composed, apart = "caf\u00e9", "cafe\u0301"
    for nfc, expected in ((True, composed), (False, apart)):
        export_tokenizer(tokenizer, config, tmp_path, nfc=nfc)
        assert AutoTokenizer.from_pretrained(tmp_path)(apart)["input_ids"] == tokenizer.encode(expected)
