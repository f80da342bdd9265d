"""Encoders with a few thousand random weights and a whole-word tokenizer, saved like transformers' models."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

torch.set_num_threads(1)  # products as small as these only wait for a second thread

KINDS = ("bert", "roberta", "distilbert", "mpnet")
BLOCKS, WIDTH = 3, 16
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"word{number}" for number in range(40)] + ["good", "bad", "film", "the", "was", "not"]
VOCABULARY = {word: index for index, word in enumerate(SPECIAL + WORDS)}
LONGEST = 32

BERT: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": LONGEST,
    "pad_token_id": 0,
}
DISTILBERT: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "dim": WIDTH,
    "n_layers": BLOCKS,
    "n_heads": 4,
    "hidden_dim": 24,
    "max_position_embeddings": LONGEST,
}


def config(kind: str, **changes: Any) -> PreTrainedConfig:
    """The configuration of an architecture: 'bert', 'roberta', 'distilbert' or 'mpnet'."""
    if kind == "distilbert":
        return DistilBertConfig(**DISTILBERT | changes)
    kinds = {"bert": BertConfig, "roberta": RobertaConfig, "mpnet": MPNetConfig}
    return kinds[kind](**BERT | changes)


def write_backbone(folder: Path, kind: str = "bert", **changes: Any) -> Path:
    """Write an encoder with random weights and its tokenizer; the same ones each time."""
    torch.manual_seed(0)
    model = AutoModel.from_config(config(kind, **changes))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)  # large enough that every part of the model is felt
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    marks = [("[CLS]", VOCABULARY["[CLS]"]), ("[SEP]", VOCABULARY["[SEP]"])]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=LONGEST - 2, **names
    ).save_pretrained(folder)
