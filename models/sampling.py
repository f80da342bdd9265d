"""Drawing the next token, again and again: how a language model's logits become text.

Works with any model: all it asks for is the logits of the token after each of some texts (`NextLogits`). The
filters apply in the order of Hugging Face's `generate`: repetition penalty, temperature, top-k, top-p, min-p.

Keskar et al. 2019, "CTRL" (repetition penalty); Fan et al. 2018, "Hierarchical Neural Story Generation"
(top-k); Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration" (top-p); Nguyen et al. 2024,
"Turning Up the Heat" (min-p).

Shapes: B texts, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:  # ids can be drawn where torch is all there is
    from lexloom.models.tokenizer.tokenizer import Decoder, Tokenizer

NextLogits = Callable[[Sequence[Sequence[int]]], Tensor]
"""(B, V) logits of the token after each of B texts, each of them ids that grow by one from call to call."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_tokens: a text is over after so many new ones.
        temperature: logits are divided by it; 0 takes the likeliest token always.
        top_k: draw from the k likeliest tokens; 0 for all.
        top_p: draw from the fewest tokens whose probabilities add up to top_p.
        min_p: draw from the tokens at least min_p times as likely as the likeliest.
        repetition_penalty: logits of tokens that have occurred are divided by it, or multiplied if negative.
        seed: the same one gives the same text; text number n of a batch draws with seed + n.
        stop: a text is over where one of these strings begins, which is not given out.

    Raises:
        ValueError: a number is out of its range, or a stop string empty.
    """

    max_tokens: int = 256
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, fits, range_ in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            (
                "temperature",
                0 <= self.temperature < float("inf"),
                "at least 0, which takes the likeliest",
            ),
            ("top_k", self.top_k >= 0, "at least 1, or 0 for all tokens"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "above 0; 1 changes nothing"),
            ("seed", 0 <= self.seed < 1 << 63, "at least 0"),
        ):
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be {range_}")
        if isinstance(self.stop, str) or not all(self.stop):
            raise ValueError(f"stop is {self.stop!r}: it must be a list of strings, none of them empty")


def probabilities(logits: Tensor, sampling: Sampling, seen: Tensor | None = None) -> Tensor:
    """(B, V) logits -> (B, V) probabilities to draw from; `seen`, (B, V), says which tokens have occurred."""
    scores = logits.float()  # (B, V)
    if seen is not None and sampling.repetition_penalty != 1:
        penalised = torch.where(
            scores > 0, scores / sampling.repetition_penalty, scores * sampling.repetition_penalty
        )
        scores = torch.where(seen, penalised, scores)
    if sampling.temperature == 0:
        return torch.zeros_like(scores).scatter_(1, scores.argmax(1, keepdim=True), 1.0)
    scores = scores / sampling.temperature
    if 0 < sampling.top_k < scores.size(1):
        least = scores.topk(sampling.top_k).values[:, -1:]  # (B, 1)
        scores = scores.masked_fill(scores < least, -torch.inf)
    shares = scores.softmax(1)  # (B, V)
    if sampling.top_p < 1:
        falling, order = shares.sort(dim=1, descending=True, stable=True)  # (B, V)
        before = falling.cumsum(1) - falling  # the shares of all likelier tokens
        shares = shares.scatter(1, order, falling.masked_fill(before >= sampling.top_p, 0.0))
    if sampling.min_p > 0:
        shares = shares.masked_fill(shares < sampling.min_p * shares.amax(1, keepdim=True), 0.0)
    return shares / shares.sum(1, keepdim=True)


def sample_tokens(
    next_logits: NextLogits,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    end_of_text: int | None = None,
) -> Iterator[list[int | None]]:
    """Goes on from prompts of any lengths: one new token for each at a time, None for a text that is over.

    A text is over after `sampling.max_tokens`, or with `end_of_text`, which is not given out. An empty prompt
    stands for the beginning of a text: `end_of_text`, behind which texts begin. A text's tokens do not depend
    on the others in its batch. (`sampling.stop` is for `sample_text`.)

    Raises:
        ValueError: a prompt is empty, and there is no `end_of_text`.
    """
    texts = [list(prompt) for prompt in prompts]
    for text in texts:
        if not text:
            if end_of_text is None:
                raise ValueError("the prompt is empty, and there is no end-of-text token to begin behind")
            text.append(end_of_text)
    chances = [torch.Generator().manual_seed(sampling.seed + number) for number in range(len(texts))]
    over = [False] * len(texts)
    seen: Tensor | None = None
    for _ in range(sampling.max_tokens):
        logits = next_logits(texts).float().cpu()  # (B, V); drawn on the CPU, alike whatever the device
        if sampling.repetition_penalty != 1:
            if seen is None:
                seen = torch.zeros(logits.shape, dtype=torch.bool)
                for row, text in zip(seen, texts, strict=True):
                    row[text] = True
            else:
                seen[torch.arange(len(texts)), [text[-1] for text in texts]] = True
        shares = probabilities(logits, sampling, seen)  # (B, V)
        drawn: list[int | None] = []
        for number, (text, row, chance) in enumerate(zip(texts, shares, chances, strict=True)):
            token = int(torch.multinomial(row, 1, generator=chance))
            text.append(token)
            over[number] = over[number] or token == end_of_text
            drawn.append(None if over[number] else token)
        if all(over):
            return
        yield drawn


def sample_text(
    next_logits: NextLogits, tokenizer: "Tokenizer", prompts: Sequence[str], sampling: Sampling
) -> Iterator[list[str]]:
    """Goes on from prompts: what is new of each text, as soon as it is known for sure.

    A piece is empty while a character's bytes, or what may become a stop string, are not complete. All pieces
    of a text, joined, are its continuation.

    Raises:
        ValueError: a prompt holds what the tokenizer does not know.
    """
    from lexloom.models.tokenizer.tokenizer import Decoder

    writers = [Writer(Decoder(tokenizer), sampling.stop) for _ in prompts]
    ids = [tokenizer.encode(prompt) for prompt in prompts]

    def known_logits(texts: Sequence[Sequence[int]]) -> Tensor:
        return next_logits(texts)[:, : tokenizer.size]  # a model's vocabulary may be rounded up

    for tokens in sample_tokens(known_logits, ids, sampling, tokenizer.end_of_text):
        yield [writer.push(token) for writer, token in zip(writers, tokens, strict=True)]
        if all(writer.over for writer in writers):
            return
    yield [writer.finish() for writer in writers]


class Writer:
    """Text of tokens that come one by one, up to a stop string."""

    def __init__(self, decoder: "Decoder", stop: Sequence[str]) -> None:
        self._decoder = decoder
        self._stop = stop
        self._held = ""  # text that may be the beginning of a stop string
        self.over = False

    def push(self, token: int | None) -> str:
        """Text that can be given out now; None ends it."""
        if self.over:
            return ""
        return self.finish() if token is None else self._give(self._decoder.push(token))

    def finish(self) -> str:
        """What was still held back."""
        if self.over:
            return ""
        given = self._give(self._decoder.finish())
        given, self._held, self.over = given + self._held, "", True
        return given

    def _give(self, text: str) -> str:
        self._held += text
        found = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if found:
            given, self._held, self.over = self._held[: min(found)], "", True
            return given
        hold = max((begun(self._held, stop) for stop in self._stop), default=0)
        cut = len(self._held) - hold
        given, self._held = self._held[:cut], self._held[cut:]
        return given


def begun(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with, itself left out."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
