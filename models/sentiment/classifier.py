"""A sentiment classifier: labels and scores of texts, and word attributions.

The folder is a checkpoint that transformers.pipeline("text-classification", folder, truncation=True) also
loads, with the same scores. Texts are processed in order of length to minimize padding, and the last block
only computes the position that the classifier reads.
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
from lexloom.models.sentiment.batching import group_by_length, map_in_threads, pad_batch
from lexloom.models.sentiment.encoder_structure import max_text_length
from lexloom.models.sentiment.first_position import use_first_position_block
from lexloom.models.sentiment.hf_loading import (
    load_classifier,
    load_tokenizer,
    quiet_transformers,
    require_device,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TEXTS_AT_ONCE = 4096
TOKENS_AT_ONCE = 4096
DEFAULT_MAX_TOKENS = 512  # per text, if the model has no limit
MAX_PHRASES = 64  # per text, for attributions
WORD = re.compile(r"\S+")
ARCHITECTURE = "ForSequenceClassification"
SINGLE_LABEL = "single_label_classification"  # a value of transformers' `problem_type`


def classify(folder: Path | str, texts: Sequence[str]) -> list[tuple[str, float]]:
    """Return (label, score) of each text by the classifier in `folder`; see `Classifier.classify`."""
    return Classifier.load(folder).classify(texts)


class Classifier:
    """A loaded classifier with its `labels`, which reads at most `max_length` tokens of a text."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: Tokenizer,
        max_length: int,
        truncation_side: str = "right",
        normalization: Normalization | None = None,
    ) -> None:
        """Take ownership of `model`. Texts that are too long are truncated on `truncation_side`.

        Texts are normalized by `normalization`, as the training text was.
        """
        use_first_position_block(model)
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
        """Load a classifier, made by Lexloom or any of transformers' for sequence classification.

        Raises:
            FileNotFoundError: there is no model folder.
            ValueError: the folder has another kind of model, or a damaged one; or there is no such device.
        """
        folder = Path(folder)
        require_device(device)
        check_folder(folder)
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
        check_single_label(model, folder)
        cast(nn.Module, model).to(device)
        return cls(model, tokenizer, *read_limits(folder, model), read_normalization(folder))

    def classify(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """Return each text's most probable label and its probability, in the order of the texts.

        Raises:
            ValueError: a text is empty, or not a string.
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
                raise ValueError(f"text {number} of {len(texts)} is {type(text).__name__}, not str")
            if not text.strip():
                raise ValueError(f"text {number} of {len(texts)} is empty: remove it")
            check_surrogates(text, f"text {number} of {len(texts)}")
        if not texts:
            return np.empty((0, len(self.labels)), np.float32)
        read = normalize_texts(texts, self.normalization)
        for number, text in enumerate(read, 1):
            if not text.strip():
                raise ValueError(
                    f"this model's normalization removes all of text {number} of {len(texts)}:"
                    " remove the text"
                )
        return self._logits(read).softmax(1).numpy()

    def attribute(self, text: str) -> list[tuple[str, float]]:
        """Return (word, attribution) for each word that the model read.

        The words are those of the normalized text (`normalized`). An attribution is the decrease of the
        log-odds of the text's most probable label when the word is removed (leave-one-out): positive if the
        word supports the label, negative if it contradicts it. In a text of more than 64 words, phrases of
        several words are removed words_per_phrase and returned as one. Attributions need not add up.

        Raises:
            ValueError: the text is empty, or the model reads no token of it.
        """
        if not text.strip():
            raise ValueError("the text is empty: there are no words to attribute to")
        check_surrogates(text, "the text")
        text = self._read(self.normalized(text))
        words = [match.span() for match in WORD.finditer(text)]
        if not words:
            raise ValueError("the model reads no token of this text: there are no words to attribute to")
        words_per_phrase = -(-len(words) // MAX_PHRASES)
        spans = [
            (words[i][0], words[min(i + words_per_phrase, len(words)) - 1][1])
            for i in range(0, len(words), words_per_phrase)
        ]
        logits = self._logits([text, *(text[:start] + text[end:] for start, end in spans)])
        label = int(logits[0].argmax())
        odds = log_odds(logits, label)
        return [
            (text[start:end], float(odds[0] - left))
            for (start, end), left in zip(spans, odds[1:], strict=True)
        ]

    def normalized(self, text: str) -> str:
        """Return the text as the model reads it."""
        return normalize_text(text, self.normalization)

    def _read(self, text: str) -> str:
        """Return the part of the text that the model reads, with the space before it."""
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
            batch, mask = pad_batch([ids[row] for row in rows])
            found = self._model(input_ids=batch.to(device), attention_mask=mask.to(device)).logits
            return found.float().cpu()

        groups = list(group_by_length([len(row) for row in ids], TOKENS_AT_ONCE))
        logits = torch.empty(len(texts), len(self.labels))
        for rows, found in zip(groups, map_in_threads(logits_of, groups, device.type), strict=True):
            logits[torch.from_numpy(rows)] = found
        return logits


def check_surrogates(text: str, which: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        surrogate = f"U+{ord(text[error.start]):04X}"
        raise ValueError(
            f"{which} has a lone surrogate ({surrogate}) at character {error.start + 1}: check how it was"
            " decoded"
        ) from None


def log_odds(logits: Tensor, label: int) -> Tensor:
    """(N, C) logits to (N,) log-odds of one label against all others."""
    others = torch.cat([logits[:, :label], logits[:, label + 1 :]], dim=1)
    return logits[:, label] - others.logsumexp(1)


def check_folder(folder: Path) -> None:
    """Check that a folder has a classifier; raises as `Classifier.load` does."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except OSError as error:
        raise FileNotFoundError(
            f"there is no model in {folder} (no config.json): use a folder that the sentiment flow wrote"
        ) from error
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'} is not JSON ({error}): train again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder / 'config.json'} does not describe a model: train again")
    kinds = config.get("architectures") or [config.get("model", "unknown")]
    if not any(str(kind).endswith(ARCHITECTURE) for kind in kinds):
        raise ValueError(f"{folder} contains a model of the kind {kinds[0]}, not a text classifier")


def read_limits(folder: Path, model: "PreTrainedModel") -> tuple[int, str]:
    """Read the maximum number of tokens of a text, and the side on which longer texts are truncated."""
    try:
        options = dict(json.loads((folder / "tokenizer_config.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        options = {}
    limit = max_text_length(model) or DEFAULT_MAX_TOKENS
    return int(min(options.get("model_max_length", limit), limit)), str(
        options.get("truncation_side", "right")
    )


def check_single_label(model: "PreTrainedModel", folder: Path) -> None:
    """Raise a ValueError unless a text's scores are probabilities of exclusive labels."""
    if (model.config.num_labels or 0) < 2:
        raise ValueError(f"{folder} has a single label, so it is a regression model: use a classifier")
    kind = model.config.problem_type
    if kind not in (None, SINGLE_LABEL):
        raise ValueError(f"{folder} is trained for {kind}: only {SINGLE_LABEL} is supported")


def save_classifier(
    folder: Path, backbone: Path, labels: Sequence[str], max_length: int, tensors: dict[str, Tensor]
) -> None:
    """Write a checkpoint for transformers: the backbone with the trained parameters.

    `tensors` are named as in the checkpoint (`TrainedPart.names`).
    """
    model = load_classifier(backbone, labels)
    unknown = model.load_state_dict(tensors, strict=False).unexpected_keys
    assert not unknown, f"no such parameters in {type(model).__name__}: {unknown[:3]}"
    tokenizer = load_tokenizer(backbone)
    tokenizer.model_max_length = max_length
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    shutil.copymode(
        folder / "config.json", folder / "model.safetensors"
    )  # save_pretrained makes it readable by its owner only
