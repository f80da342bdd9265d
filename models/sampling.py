"""Sampling of text from a language model.

It works with any model that computes the logits of the next token (`NextLogits`). The filters are applied in
the order of Hugging Face's `generate`: repetition penalty, temperature, top-k, top-p, min-p.

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

if TYPE_CHECKING:  # sampling ids only requires torch
    from lexloom.models.tokenizer.tokenizer import Decoder, Tokenizer

NextLogits = Callable[[Sequence[Sequence[int]]], Tensor]
"""(B, V) logits of the token after each of B texts of ids, which grow by one token from call to call."""

TEXT_SEPARATOR = "\n\n"  # represents an end-of-text token between generated texts


@dataclass(frozen=True)
class Sampling:
    """Sampling options.

    Attributes:
        max_tokens: maximum number of new tokens per text.
        temperature: divisor of the logits; 0 always takes the most probable token.
        top_k: sample from the k most probable tokens; 0 for all.
        top_p: sample from the smallest set of tokens whose probabilities sum to at least top_p.
        min_p: sample from tokens with at least min_p times the highest probability.
        repetition_penalty: divide positive logits of tokens that have occurred by it, and multiply negative
            ones.
        seed: the same seed gives the same text; text number n of a batch uses seed + n.
        stop: strings before which a text ends.
        stop_at_end: whether a text ends at an end-of-text token. By default, the model continues with another
            text after a blank line.

    Raises:
        ValueError: a number is out of range, or a stop string is empty.
    """

    max_tokens: int = 256
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_at_end: bool = False

    def __post_init__(self) -> None:
        for name, fits, range_ in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            (
                "temperature",
                0 <= self.temperature < float("inf"),
                "at least 0 (0 selects the most probable token)",
            ),
            ("top_k", self.top_k >= 0, "at least 1, or 0 for all tokens"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "above 0 (1 has no effect)"),
            ("seed", 0 <= self.seed < 1 << 63, "at least 0"),
        ):
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be {range_}")
        if isinstance(self.stop, str) or not all(self.stop):
            raise ValueError(f"stop is {self.stop!r}: it must be a list of non-empty strings")


def sampling_probabilities(logits: Tensor, sampling: Sampling, seen: Tensor | None = None) -> Tensor:
    """(B, V) logits -> (B, V) probabilities to sample from; `seen`, (B, V), marks earlier tokens."""
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
    probabilities = scores.softmax(1)  # (B, V)
    if sampling.top_p < 1:
        falling, order = probabilities.sort(dim=1, descending=True, stable=True)  # (B, V)
        before = falling.cumsum(1) - falling  # the sum of the higher probabilities
        probabilities = probabilities.scatter(1, order, falling.masked_fill(before >= sampling.top_p, 0.0))
    if sampling.min_p > 0:
        probabilities = probabilities.masked_fill(
            probabilities < sampling.min_p * probabilities.amax(1, keepdim=True), 0.0
        )
    return probabilities / probabilities.sum(1, keepdim=True)


def sample_tokens(
    next_logits: NextLogits,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    end_of_text: int | None = None,
) -> Iterator[list[int | None]]:
    """Continue prompts of any lengths: yield one new token for each at a time, None for a finished text.

    A text ends after `sampling.max_tokens` or, with `sampling.stop_at_end`, at `end_of_text`, which is then
    not yielded. An empty prompt is replaced with `end_of_text`, which precedes texts in training. A text's
    tokens do not depend on the others in the batch. `sampling.stop` is only used by `sample_text`.

    Raises:
        ValueError: a prompt is empty, and there is no `end_of_text`.
    """
    texts = [list(prompt) for prompt in prompts]
    for text in texts:
        if not text:
            if end_of_text is None:
                raise ValueError("the prompt is empty, and there is no end-of-text token to start from")
            text.append(end_of_text)
    generators = [torch.Generator().manual_seed(sampling.seed + number) for number in range(len(texts))]
    finished = [False] * len(texts)
    seen: Tensor | None = None
    for _ in range(sampling.max_tokens):
        logits = (
            next_logits(texts).float().cpu()
        )  # (B, V); sampled on the CPU, so that the device makes no difference
        if sampling.repetition_penalty != 1:
            if seen is None:
                seen = torch.zeros(logits.shape, dtype=torch.bool)
                for row, text in zip(seen, texts, strict=True):
                    row[text] = True
            else:
                seen[torch.arange(len(texts)), [text[-1] for text in texts]] = True
        probabilities = sampling_probabilities(logits, sampling, seen)  # (B, V)
        sampled: list[int | None] = []
        for number, (text, row, generator) in enumerate(zip(texts, probabilities, generators, strict=True)):
            token = int(torch.multinomial(row, 1, generator=generator))
            text.append(token)
            finished[number] = finished[number] or (sampling.stop_at_end and token == end_of_text)
            sampled.append(None if finished[number] else token)
        if all(finished):
            return
        yield sampled


def sample_text(
    next_logits: NextLogits, tokenizer: "Tokenizer", prompts: Sequence[str], sampling: Sampling
) -> Iterator[list[str]]:
    """Continue prompts: yield the new text of each, as soon as it is certain.

    A piece is empty while the bytes of a character, or what may become a stop string, are incomplete. The
    concatenated pieces of a text are its continuation. If the model goes on after an end of text, a blank
    line separates the texts; it is omitted if no text precedes or follows it.

    Raises:
        ValueError: a prompt contains characters that the tokenizer does not know.
    """
    from lexloom.models.tokenizer.tokenizer import Decoder

    streamers = [
        TextStreamer(Decoder(tokenizer), sampling.stop, tokenizer.end_of_text, begun=prompt != "")
        for prompt in prompts
    ]
    ids = [tokenizer.encode(prompt) for prompt in prompts]

    def known_logits(texts: Sequence[Sequence[int]]) -> Tensor:
        return next_logits(texts)[:, : tokenizer.size]  # a model's vocabulary may be rounded up

    for tokens in sample_tokens(known_logits, ids, sampling, tokenizer.end_of_text):
        yield [streamer.push(token) for streamer, token in zip(streamers, tokens, strict=True)]
        if all(streamer.finished for streamer in streamers):
            return
    yield [streamer.finish() for streamer in streamers]


def explain_no_text(sampling: Sampling) -> str:
    """Return a sentence on why a continuation is empty or white space."""
    reasons = ["the end of the text" if sampling.stop_at_end else "ends of texts"]
    reasons += ["a stop string"] if sampling.stop else []
    advice = "; without stop_at_end, it continues with another text" if sampling.stop_at_end else ""
    return f"the model generated no text: it predicted only {', '.join(reasons)} or white space{advice}"


class TextStreamer:
    """Converts tokens to text one at a time, up to a stop string.

    `begun` says whether text precedes the first token.
    """

    def __init__(
        self, decoder: "Decoder", stop: Sequence[str], end_of_text: int | None = None, *, begun: bool = True
    ) -> None:
        self._decoder = decoder
        self._stop = stop
        self._end_of_text = end_of_text
        self._begun = begun
        self._separator = ""  # precedes the next text
        self._held = ""  # text that may be the start of a stop string
        self.finished = False

    def push(self, token: int | None) -> str:
        """Add a token, or end the text with None; return the text that is certain."""
        if self.finished:
            return ""
        if token is None:
            return self.finish()
        ended = token == self._end_of_text
        text = self._decoder.finish() if ended else self._decoder.push(token)
        if text:
            text, self._separator, self._begun = self._separator + text, "", True
        if ended and self._begun:
            self._separator = TEXT_SEPARATOR
        return self._release(text)

    def finish(self) -> str:
        """End the text; return what was held back."""
        if self.finished:
            return ""
        released = self._release(self._decoder.finish())
        released, self._held, self.finished = released + self._held, "", True
        return released

    def _release(self, text: str) -> str:
        self._held += text
        found = [start for stop in self._stop if (start := self._held.find(stop)) >= 0]
        if found:
            released, self._held, self.finished = self._held[: min(found)], "", True
            return released
        hold = max((stop_overlap(self._held, stop) for stop in self._stop), default=0)
        cut = len(self._held) - hold
        released, self._held = self._held[:cut], self._held[cut:]
        return released


def stop_overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that `text` ends with."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
