"""A pretrained decoder is read with the logits that transformers computes, or rejected."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lexloom.models.sampling import Sampling
from lexloom.models.tokenizer.pretrained import read_pretrained_tokenizer
from lexloom.models.tokenizer.tokenizer import Tokenizer
from lexloom.models.transformer.gguf_export import export_gguf
from lexloom.models.transformer.hf_io import ROPE_SCALING, export_tokenizer, load, save
from lexloom.models.transformer.model import Transformer
from lexloom.models.transformer.pretrained import check_tokenizer, load_pretrained, read_pretrained_config
from tests.models.decoders import POSITIONS, TEXT, VOCABULARY, write_decoder

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2 with other sizes": ("gpt2", {"n_inner": 40, "layer_norm_epsilon": 1e-3, "n_head": 2}),
    "llama": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}),
    "llama with biases": ("llama", {"attention_bias": True, "head_dim": 6, "tie_word_embeddings": True}),
    "llama 3.1": ("llama", {"rope_parameters": LLAMA3, "rms_norm_eps": 1e-2}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 10, "rms_norm_eps": 1e-3}),
    "qwen3 with biases": ("qwen3", {"head_dim": 8, "attention_bias": True}),
}
IDS = torch.randint(VOCABULARY, (2, POSITIONS), generator=torch.Generator().manual_seed(0))


def read(folder: Path) -> Transformer:
    return load_pretrained(folder, read_pretrained_config(folder)).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found = model(IDS)
    return found if isinstance(found, torch.Tensor) else found.logits


@pytest.mark.parametrize(("kind", "options"), VARIANTS.values(), ids=VARIANTS)
def test_logits_equal_those_of_transformers(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    theirs = write_decoder(tmp_path / "theirs", kind, **options)
    ours = read(tmp_path / "theirs")
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-4, rtol=1e-4)
    save(ours, tmp_path / "ours")
    assert torch.equal(logits(load(tmp_path / "ours")), logits(ours))
    assert torch.equal(logits(read(tmp_path / "ours")), logits(ours)), "the saved folder is one itself"
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert again.config.model_type == kind
    torch.testing.assert_close(logits(again), logits(theirs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "qwen3"])
def test_gguf_has_the_same_weights(name: str, tmp_path: Path) -> None:
    kind, options = VARIANTS[name]
    write_decoder(tmp_path, kind, **options)
    ours, encoding = read(tmp_path), read_pretrained_tokenizer(tmp_path)
    save(ours, tmp_path)
    tokenizer = Tokenizer(encoding)
    tokenizer.save(tmp_path / "tokenizer")
    export_gguf(tmp_path, tmp_path / "model.gguf")
    shape = AutoConfig.from_pretrained(tmp_path)  # transformers does not read key_length from GGUF
    shape.vocab_size = tokenizer.size
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", config=shape)
    torch.testing.assert_close(logits(theirs), logits(ours)[..., : tokenizer.size], atol=1e-4, rtol=1e-4)


def test_older_files_are_read(tmp_path: Path) -> None:
    """Sharded bfloat16 weights of the class without a head, constants, and names of older versions."""
    theirs = write_decoder(tmp_path, "gpt2")
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    base = {name.removeprefix("transformer."): tensor.bfloat16() for name, tensor in tensors.items()}
    base["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
    base["lm_head.weight"] = base["wte.weight"].clone()
    names = sorted(base)
    save_file({name: base[name] for name in names[:5]}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({name: base[name] for name in names[5:]}, tmp_path / "model-00002-of-00002.safetensors")
    expected = logits(theirs.bfloat16().float())
    torch.testing.assert_close(logits(read(tmp_path)), expected, atol=1e-4, rtol=1e-4)
    write_decoder(tmp_path / "llama", "llama")
    older = {"type": "llama3", **{name: LLAMA3[name] for name in ROPE_SCALING}}
    change(tmp_path / "llama", rope_parameters=None, rope_theta=500.0, rope_scaling=older)
    config = read_pretrained_config(tmp_path / "llama")
    assert (config.rope_base, config.rope_scaling) == (500.0, (4.0, 1.0, 4.0, 32))


def test_generation_goes_on_beyond_the_first_cache_block(tmp_path: Path) -> None:
    write_decoder(tmp_path, "llama", max_position_embeddings=2000)
    model = read(tmp_path)
    generated = [step[0] for step in model.generate([[5]], Sampling(max_tokens=300, temperature=0))]
    with torch.no_grad():
        predicted = model(torch.tensor([[5, *generated]])).argmax(2)[0]
    same = sum(a == b for a, b in zip(predicted.tolist(), generated, strict=False))
    assert same > 295, "rounding may decide between two tokens"


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | values))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model_type": "mamba"}, "a model of the type 'mamba', which Lexloom can't train: use .* qwen3"),
        ({"hidden_act": "relu"}, "the activation is 'relu', which Lexloom does not support"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_key_value_heads": 3}, "kv_heads is 3: it must be a divisor of heads, 4"),
        (
            {"vocab_size": 999},
            r"embed_tokens\.weight has the shape \(280, 32\), but config.*\(999, 32\)",
        ),
        ({"num_hidden_layers": 3}, r"does not match config\.json: it has missing or unknown tensors"),
        ({"hidden_size": None}, "does not describe a llama model"),
    ],
)
def test_unsupported_models_are_rejected(values: dict[str, Any], says: str, tmp_path: Path) -> None:
    write_decoder(tmp_path, "llama")
    change(tmp_path, **values)
    with pytest.raises(ValueError, match=says):
        read(tmp_path)


def test_incomplete_folders_are_rejected(tmp_path: Path) -> None:
    write_decoder(tmp_path, "gpt2")
    (tmp_path / "tokenizer_config.json").unlink()
    change(tmp_path, eos_token_id=None)
    with pytest.raises(ValueError, match=r"neither eos_token in tokenizer_config\.json nor eos_token_id"):
        read_pretrained_tokenizer(tmp_path)
    change(tmp_path, eos_token_id=[7, 9])
    assert read_pretrained_tokenizer(tmp_path).end_of_text == 7
    change(tmp_path, eos_token_id=50256)
    with pytest.raises(ValueError, match="the end-of-text token has the id 50256, but ids are below 272"):
        read_pretrained_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json can't be used"):
        read_pretrained_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing: load the tokenizer with"):
        read_pretrained_tokenizer(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"model\.safetensors can't be read"):
        read(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no weights as safetensors"):
        read(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="does not contain a pretrained decoder"):
        read(tmp_path)


def test_a_tokenizer_with_more_ids_than_the_model_is_rejected(tmp_path: Path) -> None:
    write_decoder(tmp_path, "gpt2", vocab_size=200)
    with pytest.raises(ValueError, match=r"272 ids, but the model's vocabulary has 200: use the"):
        check_tokenizer(
            Tokenizer(read_pretrained_tokenizer(tmp_path)), read_pretrained_config(tmp_path), tmp_path
        )


def test_the_tokenizer_is_exported_again(tmp_path: Path) -> None:
    write_decoder(tmp_path / "theirs", "qwen3")
    config = read_pretrained_config(tmp_path / "theirs")
    tokenizer = Tokenizer(read_pretrained_tokenizer(tmp_path / "theirs"))
    export_tokenizer(tokenizer, config, tmp_path / "ours", nfc=True)
    theirs, ours = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("theirs", "ours"))
    tokenizer.save(tmp_path / "saved")
    loaded = Tokenizer.load(tmp_path / "saved")
    for text in (TEXT, "  new\n\ntext 猫", "<|endoftext|>"):
        assert tokenizer.encode(text) == loaded.encode(text) == ours(text)["input_ids"]
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert theirs(TEXT)["input_ids"] == tokenizer.encode(TEXT)
    assert ours("cafe\u0301")["input_ids"] == tokenizer.encode("caf\u00e9")
    assert loaded.end_of_text == ours.eos_token_id == 0
