"""Loading of Hugging Face encoders and tokenizers from a folder, without network access."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def load_classifier(folder: Path, labels: Sequence[str] | None = None) -> "PreTrainedModel":
    """Load the encoder in `folder` with a classification head, float32, in eval mode.

    With `labels` the head is for these labels, and its weights are random unless the folder has a matching
    head; without, it is the folder's own. Nothing is downloaded or unpickled, and no code from the folder is
    run.

    Raises:
        ValueError: transformers can't load the folder as an encoder with a classification head.
    """
    from transformers import AutoModelForSequenceClassification  # importing it takes seconds

    options: dict[str, Any] = {}
    if labels is not None:
        options = {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
            "problem_type": "single_label_classification",
            "ignore_mismatched_sizes": True,
        }
    with quiet_transformers(), translate_errors(folder, "an encoder"):
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, weights_only=True, **options
        )
    return cast("PreTrainedModel", model.eval())


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """Load the tokenizer of a model folder.

    Raises:
        ValueError: there is none, or it can't be converted to the `tokenizers` library.
    """
    from transformers import AutoTokenizer

    with quiet_transformers(), translate_errors(folder, "a tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokenizer.is_fast:
        raise ValueError(f"the tokenizer in {folder} has no tokenizer.json and can't be converted to one")
    return cast("PreTrainedTokenizerFast", tokenizer)


@contextmanager
def translate_errors(folder: Path, what: str) -> Iterator[None]:
    """Turn any error of transformers about a folder into a ValueError of one sentence."""
    try:
        yield
    except Exception as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"the folder {folder} can't be read as {what} by transformers: {message}") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Disable transformers' progress bars, and its warning that a new classifier is untrained."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def require_device(device: str) -> None:
    """Raise a ValueError if torch can't use the device."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"the device is {device}, but torch finds no GPU on this machine: use cpu")
