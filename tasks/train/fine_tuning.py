"""Continued training of a pretrained decoder: of all its weights, or of low-rank adapters (LoRA).

The decoder is copied into Lexloom's own network, and trained, saved and evaluated like any other.
"""

from dataclasses import replace
from importlib.util import find_spec
from typing import Any, ClassVar, Self

from lexloom.models.tokenizer.pretrained import NAME
from lexloom.models.transformer.config import TransformerConfig
from lexloom.models.transformer.lora import add_adapters, merge_adapters
from lexloom.models.transformer.model import Transformer
from lexloom.models.transformer.pretrained import load_pretrained
from lexloom.tasks.sources.initial_model import InitialModel
from lexloom.tasks.subwords import SubwordsConfig
from lexloom.tasks.train.transformer import TrainTransformerConfig
from lexloom.tasks.train.transformer_defaults import ARCHITECTURE, FINE_TUNING_EPOCHS, largest_divisor

CONTEXT = 256  # default number of tokens in a training window


class FineTuneTransformerConfig(TrainTransformerConfig):
    """Training that continues `initial`, whose digest is part of the key."""

    initial: InitialModel

    planned: ClassVar[tuple[str, ...]] = ("context", "epochs", "batch_size")
    most_epochs: ClassVar[float] = FINE_TUNING_EPOCHS

    def shapes(self) -> list[dict[str, Any]]:
        """Return the initial model's size; its speed is measured without the other details."""
        network = self.initial.network()
        heads = network.heads if network.width % network.heads == 0 else largest_divisor(network.width)
        return [
            {
                "layers": network.layers,
                "width": network.width,
                "heads": heads,
                "kv_heads": network.kv_heads if heads % network.kv_heads == 0 else heads,
                "ffn_dim": network.ffn_dim,
                "style": network.style,
                "tie_embeddings": network.tie_embeddings,
            }
        ]

    def complete(self, values: dict[str, Any]) -> Self:
        return super().complete({name: value for name, value in values.items() if name not in ARCHITECTURE})

    def network(self, vocabulary: int, end_of_text: int | None = None) -> TransformerConfig:
        """Return the initial model's config; its context is the number of its positions."""
        return replace(self.initial.network(), dropout=self.dropout, end_of_text=end_of_text)

    def new_network(self, network: TransformerConfig) -> Transformer:
        self.initial.verify()
        model = load_pretrained(self.initial.folder, network)
        return model if self.lora_rank is None else add_adapters(model, self.lora_rank)

    def finish(self, trained: Transformer) -> Transformer:
        return trained if self.lora_rank is None else merge_adapters(trained)

    def origin(self) -> dict[str, str]:
        return {"init_from": self.initial.name, "init_from_digest": self.initial.digest}


def continue_from(initial: InitialModel, config: TrainTransformerConfig) -> FineTuneTransformerConfig:
    """Return the config that continues training a model; the default context is at most its positions.

    Raises:
        ModuleNotFoundError: adapters are requested, but the package peft is not installed.
        ValueError: the context exceeds the model's positions.
    """
    if config.lora_rank is not None and find_spec("peft") is None:
        raise ModuleNotFoundError("low-rank adapters need peft: pip install 'lexloom[lora]'")
    network = initial.network()
    context = config.context or min(CONTEXT, network.context)
    if context > network.context:
        raise ValueError(
            f"the context of {context:,} tokens exceeds the {network.context:,} positions of {initial.name}:"
            " lower --context"
        )
    given = config.model_dump() | {"context": context}
    return FineTuneTransformerConfig(**given, initial=initial)


def tokenization_of(initial: InitialModel, config: SubwordsConfig) -> SubwordsConfig:
    """Return the tokenization config for the model's tokenizer, which keeps all ids."""
    return config.model_copy(update={"encoding": NAME, "compact": False})
