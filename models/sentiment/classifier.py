"""A sentiment classifier in a folder: labels and scores of texts, and which words pulled them.

The folder is a checkpoint that transformers.pipeline("text-classification", folder, truncation=True) loads
too, with the same scores. Texts are computed in the order of their lengths, so that little of a batch is
padding, and in the last block only the position that the classifier reads.
"""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from lexloom.models.normalization import Normalization, normalize_text, normalize_texts, read_normalization
from lexloom.models.sentiment.frozen_encoder import (
    by_length,
    in_threads,
    load_classifier,
    load_tokenizer,
    longest_text,
    padded,
    quiet,
    require_device,
    shorten,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TEXTS_AT_ONCE = 4096
TOKENS_AT_ONCE = 4096
MOST_TOKENS = 512  # of a text, where the model has no bound
PHRASES = 64  # that a text's attribution is divided among, at most
WORD = re.compile(r"\S+")
ARCHITECTURE = "ForSequenceClassification"
ONE_LABEL = "single_label_classification"  # as transformers says it


def classify(folder: Path | str, texts: Sequence[str]) -> list[tuple[str, float]]:
    """(label, score) of each text by the classifier in `folder`; see `Classifier.classify`."""
    return Classifier.load(folder).classify(texts)


class Classifier:
    """A classifier ready for use: `labels`, and at most `max_length` tokens of a text that it reads."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: Tokenizer,
        max_length: int,
        truncation_side: str = "right",
        normalization: Normalization | None = None,
    ) -> None:
        """Takes `model` over. Of a text that is too long the end falls away; with "left" its start.

        Texts are normalised by `normalization`, as the training text was.
        """
        shorten(model)
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length, direction=truncation_side)
        self.max_length = max_length
        self.normalization = normalization
        names = cast("dict[int, str]", model.config.id2label)
        self.labels = [str(names[index]) for index in range(len(names))]

    @classmethod
    def load(cls, folder: Path | str, device: str = "cpu") -> "Classifier":
        """A classifier from a folder, Lexloom's or any of transformers' for sequence classification.

        Raises:
            FileNotFoundError: there is no model folder.
            ValueError: it holds a model of another kind, or a damaged one; or there is no such device.
        """
        folder = Path(folder)
        require_device(device)
        check(folder)
        tokenizer_file = folder / "tokenizer.json"
        if not tokenizer_file.is_file():
            raise FileNotFoundError(
                f"the model folder {folder} has no tokenizer.json: train or export it again"
            )
        try:
            tokenizer = Tokenizer.from_file(str(tokenizer_file))
        except Exception as error:  # the library raises nothing more precise
            raise ValueError(f"{tokenizer_file} can't be read ({error}): train or export it again") from error
        model = load_classifier(folder)
        refuse_other_scores(model, folder)
        cast(nn.Module, model).to(device)
        return cls(model, tokenizer, *reading(folder, model), read_normalization(folder))

    def classify(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """Each text's likeliest label and its probability, in the order of the texts.

        Raises:
            ValueError: a text is empty, or no text.
        """
        probabilities = self.probabilities(texts)
        best = probabilities.argmax(1)
        return [
            (self.labels[label], float(row[label])) for label, row in zip(best, probabilities, strict=True)
        ]

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N, C): the probability of each label, in the order of `labels`. Raises as `classify` does."""
        for number, text in enumerate(texts, 1):
            if not isinstance(text, str):
                raise ValueError(f"text {number} of {len(texts)} is {type(text).__name__}, not text")
            if not text.strip():
                raise ValueError(f"text {number} of {len(texts)} is empty: leave it out")
            refuse_half_characters(text, f"text {number} of {len(texts)}")
        if not texts:
            return np.empty((0, len(self.labels)), np.float32)
        read = normalize_texts(texts, self.normalization)
        for number, text in enumerate(read, 1):
            if not text.strip():
                raise ValueError(
                    f"nothing is left of text {number} of {len(texts)} by this model's normalisation:"
                    " leave it out"
                )
        return self._logits(read).softmax(1).numpy()

    def attribute(self, text: str) -> list[tuple[str, float]]:
        """(word, pull) for each word that the model read: what the text's label owes to it.

        The words are those of the normalised text (`normalized`).

        The pull is the change in the log odds of the text's likeliest label when the word is left out (leave
        one out): above 0 the word spoke for the label, below 0 against it. In a text of more than 64 words
        phrases of several words are left out together, and stand here as one. Pulls need not add up.

        Raises:
            ValueError: the text is empty, or nothing in it is a token.
        """
        if not text.strip():
            raise ValueError("the text is empty: there is no word to look at")
        refuse_half_characters(text, "the text")
        text = self._read(self.normalized(text))
        words = [match.span() for match in WORD.finditer(text)]
        if not words:
            raise ValueError("the model reads nothing of this text: there is no word to look at")
        together = -(-len(words) // PHRASES)
        spans = [
            (words[i][0], words[min(i + together, len(words)) - 1][1]) for i in range(0, len(words), together)
        ]
        logits = self._logits([text, *(text[:start] + text[end:] for start, end in spans)])
        label = int(logits[0].argmax())
        odds = log_odds(logits, label)
        return [
            (text[start:end], float(odds[0] - left))
            for (start, end), left in zip(spans, odds[1:], strict=True)
        ]

    def normalized(self, text: str) -> str:
        """The text as the model reads it."""
        return normalize_text(text, self.normalization)

    def _read(self, text: str) -> str:
        """What of the text the model reads, with the space before it."""
        tokens = [(start, end) for start, end in self._tokenizer.encode(text).offsets if end > start]
        if not tokens:
            return ""
        first = min(start for start, _ in tokens)
        return text[len(text[:first].rstrip()) : max(end for _, end in tokens)]

    def _logits(self, texts: Sequence[str]) -> Tensor:
        """(N, C) float32 on the CPU."""
        starts = range(0, len(texts), TEXTS_AT_ONCE)
        return torch.cat([self._logits_at_once(texts[start : start + TEXTS_AT_ONCE]) for start in starts])

    def _logits_at_once(self, texts: Sequence[str]) -> Tensor:
        ids = [torch.tensor(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        device = self._model.device

        @torch.inference_mode()
        def logits_of(rows: NDArray[np.int64]) -> Tensor:
            batch, mask = padded([ids[row] for row in rows])
            found = self._model(input_ids=batch.to(device), attention_mask=mask.to(device)).logits
            return found.float().cpu()

        groups = list(by_length([len(row) for row in ids], TOKENS_AT_ONCE))
        logits = torch.empty(len(texts), len(self.labels))
        for rows, found in zip(groups, in_threads(logits_of, groups, device.type), strict=True):
            logits[torch.from_numpy(rows)] = found
        return logits


def refuse_half_characters(text: str, which: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise ValueError(
            f"{which} has half a character ({half}, a lone surrogate) at place {error.start + 1}: decode it"
            " anew"
        ) from None


def log_odds(logits: Tensor, label: int) -> Tensor:
    """(N, C) logits to (N,) log odds of one label against all others."""
    others = torch.cat([logits[:, :label], logits[:, label + 1 :]], dim=1)
    return logits[:, label] - others.logsumexp(1)


def check(folder: Path) -> None:
    """Whether a folder holds a classifier; raises as `Classifier.load` does."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except OSError as error:
        raise FileNotFoundError(
            f"there is no model in {folder} (no config.json): name the folder that a sentiment flow wrote"
        ) from error
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'} is no JSON ({error}): train again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder / 'config.json'} describes no model: train again")
    kinds = config.get("architectures") or [config.get("model", "unknown")]
    if not any(str(kind).endswith(ARCHITECTURE) for kind in kinds):
        raise ValueError(f"{folder} holds a model of the kind {kinds[0]}, not a classifier of texts")


def reading(folder: Path, model: "PreTrainedModel") -> tuple[int, str]:
    """How many tokens of a text are read, and on which side a longer one is cut."""
    try:
        stated = dict(json.loads((folder / "tokenizer_config.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        stated = {}
    most = longest_text(model) or MOST_TOKENS
    return int(min(stated.get("model_max_length", most), most)), str(stated.get("truncation_side", "right"))


def refuse_other_scores(model: "PreTrainedModel", folder: Path) -> None:
    """ValueError where a text's scores would not be shares of 1, of which its one label has the most."""
    if (model.config.num_labels or 0) < 2:
        raise ValueError(f"{folder} has one label, so it gives a number and no choice: name a classifier")
    kind = model.config.problem_type
    if kind not in (None, ONE_LABEL):
        raise ValueError(f"{folder} is trained for {kind}: scores are read of {ONE_LABEL} only")


def save_classifier(
    folder: Path, backbone: Path, labels: Sequence[str], max_length: int, tensors: dict[str, Tensor]
) -> None:
    """Writes a checkpoint for transformers: the backbone with what was trained in its place.

    `tensors` are named as in the checkpoint (`TrainedPart.names`).
    """
    model = load_classifier(backbone, labels)
    unknown = model.load_state_dict(tensors, strict=False).unexpected_keys
    assert not unknown, f"no such parameters in {type(model).__name__}: {unknown[:3]}"
    tokenizer = load_tokenizer(backbone)
    tokenizer.model_max_length = max_length
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # else for its owner's eyes only
