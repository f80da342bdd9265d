"""An LSTM language model (Hochreiter and Schmidhuber 1997, "Long Short-Term Memory").

Shapes: B texts, T tokens, V vocabulary.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lexloom.models.language_model import LanguageModel
from lexloom.models.model_folder import load_network, save_network
from lexloom.models.registry import ModelFamily

FAMILY = ModelFamily(
    kind="lstm_lm",
    title="LSTM language model",
    stage="train_lstm_lm",
    capability="generate",
)


class LSTM(nn.Module):
    def __init__(self, vocabulary: int, width: int, depth: int) -> None:
        super().__init__()
        self.shape = {"vocabulary": vocabulary, "width": width, "depth": depth}
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.LSTM(width, width, depth, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, T) -> (B, T, V)
        hidden, _ = self.layers(self.embedding(tokens))
        logits: Tensor = self.head(hidden)
        return logits


def next_token_loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the mean loss of windows of T + 1 tokens: `inputs`, (B, T), and the last one, `label`, (B,)."""
    tokens = torch.cat((batch["inputs"], batch["label"][:, None]), dim=1).long()  # (B, T + 1)
    logits = network(tokens[:, :-1])  # (B, T, V)
    return cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def save(network: LSTM, folder: Path, details: dict[str, Any]) -> None:
    save_network(folder, FAMILY.kind, network.shape, network.state_dict(), details)


def load(folder: Path, device: str = "cpu") -> LanguageModel:
    return LanguageModel.of_network(load_network(folder, FAMILY.kind, build).to(device), folder)


def build(shape: dict[str, Any], tensors: dict[str, Tensor]) -> LSTM:
    network = LSTM(**shape)
    network.load_state_dict(tensors)
    return network
