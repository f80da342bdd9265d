"""Load models by name: the functions of the Python API.

A model is specified by its name, its key, a prefix of either, `latest`, or its folder. Names and keys are
looked up in the store that LEXLOOM_STORE sets (`find_model_folder`).
"""

from pathlib import Path
from typing import TYPE_CHECKING

from lexloom.models.registry import TextClassifier, load_model, stages
from lexloom.tasks.store.lookup import find_model_folder

if TYPE_CHECKING:
    from lexloom.models.language_model import LanguageModel
    from lexloom.models.word2vec.vectors import WordVectors


def load_word_vectors(model: str | Path) -> "WordVectors":
    """Load word vectors; raises the errors of `find_model_folder` and `load_model`."""
    return load_model(find_model_folder(str(model), *stages("neighbours")), "neighbours")


def load_language_model(model: str | Path, device: str = "cpu") -> "LanguageModel":
    """Load a language model of any family; raises the errors of `find_model_folder` and `load_model`."""
    return load_model(find_model_folder(str(model), *stages("generate")), "generate", device)


def load_classifier(model: str | Path, device: str = "cpu") -> TextClassifier:
    """Load a text classifier; raises the errors of `find_model_folder` and `load_model`."""
    return load_model(find_model_folder(str(model), *stages("classify")), "classify", device)
