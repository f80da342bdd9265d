"""Train language models on your own text.

    from lexloom import Word2VecConfig, load_word_vectors, word2vec

    word2vec(Word2VecConfig(name="speeches"))
    load_word_vectors("speeches").neighbours(["peace"])

The names below are imported when they are first used, since Prefect and torch take seconds to import.
"""

import os
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

# Make OpenMP threads sleep while they wait for each other; torch reads this once, when it is loaded. By
# default they spin for milliseconds on a core that another thread may need (docs/tuning.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from lexloom.flows.run import Outcome
    from lexloom.flows.sentiment import SentimentFlowConfig, sentiment
    from lexloom.flows.transformer_lm import TransformerLMFlowConfig, transformer_lm
    from lexloom.flows.window_lm import WindowLMFlowConfig, window_lm
    from lexloom.flows.word2vec import Word2VecConfig, word2vec
    from lexloom.models.registry import families
    from lexloom.models.sampling import Sampling
    from lexloom.models.sentiment.classifier import Classifier
    from lexloom.models.word2vec.vectors import WordVectors
    from lexloom.tasks.store.loading import load_classifier, load_language_model, load_word_vectors

_MODULES = {
    "Outcome": "flows.run",
    "Sampling": "models.sampling",
    "Classifier": "models.sentiment.classifier",
    "SentimentFlowConfig": "flows.sentiment",
    "TransformerLMFlowConfig": "flows.transformer_lm",
    "WindowLMFlowConfig": "flows.window_lm",
    "Word2VecConfig": "flows.word2vec",
    "WordVectors": "models.word2vec.vectors",
    "families": "models.registry",
    "load_classifier": "tasks.store.loading",
    "load_language_model": "tasks.store.loading",
    "load_word_vectors": "tasks.store.loading",
    "sentiment": "flows.sentiment",
    "transformer_lm": "flows.transformer_lm",
    "window_lm": "flows.window_lm",
    "word2vec": "flows.word2vec",
}

__all__ = [
    "Classifier",
    "Outcome",
    "Sampling",
    "SentimentFlowConfig",
    "TransformerLMFlowConfig",
    "WindowLMFlowConfig",
    "Word2VecConfig",
    "WordVectors",
    "__version__",
    "families",
    "load_classifier",
    "load_language_model",
    "load_word_vectors",
    "sentiment",
    "transformer_lm",
    "window_lm",
    "word2vec",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("lexloom")
    if name in _MODULES:
        return getattr(import_module(f"lexloom.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'lexloom' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
