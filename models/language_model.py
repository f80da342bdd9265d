"""Language models for inference: they generate text, and predict the tokens of held-out windows.

Shapes: B texts or windows, T tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lexloom.models.normalization import Normalization, normalize_prompt, read_normalization
from lexloom.models.registry import load_model
from lexloom.models.sampling import NextLogits, Sampling, sample_text
from lexloom.models.tokenizer.tokenizer import Tokenizer

TOKENIZER = "tokenizer"  # the folder of the tokenizer in a model folder

Predict = Callable[[Tensor, Tensor, int], tuple[float | None, Tensor]]
"""Takes windows (B, T), their labels (B,) and k. Returns the summed cross-entropy of the P tokens that it
predicts of each window, in nats (None if it has no distribution), and the k most probable ones, (B, P, k)."""


@dataclass(frozen=True)
class LanguageModel:
    """A trained language model with its tokenizer.

    Attributes:
        tokenizer: text to ids and back.
        normalization: the rules of its training text; None if the text was not normalized.
        new_decoder: return a function for next-token logits that has read nothing yet. It may cache what it
            reads, so texts that are generated concurrently need one each.
        predict: see `Predict`.
        every_token: whether P is T, the label and every token of a window but the first; else P is 1, the
            label.
        context: the number of tokens that it reads at most; None if there is no limit.
        has_probabilities: whether the softmax of its logits is a distribution; False for similarities.
    """

    tokenizer: Tokenizer
    normalization: Normalization | None
    new_decoder: Callable[[], NextLogits]
    predict: Predict
    every_token: bool = True
    context: int | None = None
    has_probabilities: bool = True

    @classmethod
    def of_network(
        cls,
        network: nn.Module,
        folder: Path,
        *,
        new_decoder: Callable[[], NextLogits] | None = None,
        context: int | None = None,
    ) -> "LanguageModel":
        """Return the model of a causal network, which maps tokens (B, T) to logits (B, T, V).

        The logits at a token are of the token after it, and depend on no later token. The tokenizer and the
        normalization are those in `folder`. Without `new_decoder`, each new token costs a pass over the whole
        text.
        """
        return cls(
            Tokenizer.load(folder / TOKENIZER),
            read_normalization(folder),
            new_decoder or partial(causal_decoder, network),
            partial(predict_every_token, network),
            context=context,
        )

    def prompt(self, text: str) -> str:
        """Return the prompt as the model reads it: normalized like its training text."""
        return normalize_prompt(text, self.normalization)

    def generate(self, prompts: Sequence[str], sampling: Sampling | None = None) -> Iterator[list[str]]:
        """Continue prompts of any length; yield the next piece of text of each, "" for one that has ended.

        Raises:
            ValueError: a prompt has characters that the tokenizer does not know.
        """
        texts = [self.prompt(prompt) for prompt in prompts]
        return sample_text(self.new_decoder(), self.tokenizer, texts, sampling or Sampling())


def load_language_model(folder: Path | str, device: str = "cpu") -> LanguageModel:
    """Load a language model of any family from its folder; see `lexloom.models.registry.load_model`."""
    return load_model(folder, "generate", device)


def causal_decoder(network: nn.Module) -> NextLogits:
    """Return a function for the next-token logits of a causal network (`LanguageModel.of_network`)."""
    return partial(next_logits, network)


@torch.inference_mode()
def next_logits(network: nn.Module, texts: Sequence[Sequence[int]]) -> Tensor:
    """Return the logits (B, V) of the token after each text.

    The network is causal, so it does not see that short texts are padded on the right.
    """
    device = next(network.parameters()).device
    longest = max(map(len, texts))
    tokens = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)  # (B, T)
    logits = network(tokens)  # (B, T, V)
    last = torch.tensor([len(text) - 1 for text in texts], device=device)
    return logits[torch.arange(len(texts), device=device), last].float()


@torch.inference_mode()
def predict_every_token(network: nn.Module, inputs: Tensor, labels: Tensor, k: int) -> tuple[float, Tensor]:
    """Predict by a causal network (`LanguageModel.of_network`); see `Predict`."""
    targets = torch.cat((inputs[:, 1:], labels[:, None]), dim=1).long()  # (B, T)
    logits = network(inputs).float()  # (B, T, V)
    nats = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    return float(nats), logits.topk(k, dim=2).indices
