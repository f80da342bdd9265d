"""Decoders with a few thousand random weights and a byte-level tokenizer, saved by transformers."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

torch.set_num_threads(1)

KINDS = ("gpt2", "llama", "qwen2", "qwen3")
END_OF_TEXT = "<|endoftext|>"
TEXT = "the cat sat on the mat and the dög ran. "
VOCABULARY = 272  # of the tokenizer
POSITIONS = 64


def write_decoder(folder: Path, kind: str, **changes: Any) -> PreTrainedModel:
    """Write a decoder and its tokenizer, the same ones each time, and return the decoder."""
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY + 8,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if kind != "gpt2":
        shape |= {"num_key_value_heads": 2, "intermediate_size": 48}
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # large enough that every part of the model has an effect
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.save_pretrained(folder)
    write_byte_pairs(folder)
    return model


def write_byte_pairs(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT * 9], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT).save_pretrained(folder)
