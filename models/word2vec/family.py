"""Skip-gram as a family of word vectors."""

from pathlib import Path

from lexloom.models.registry import ModelFamily
from lexloom.models.word2vec.vectors import WordVectors

FAMILY = ModelFamily(
    kind="word2vec",
    title="word vectors",
    stage="train_word2vec",
    capability="neighbours",
    reads_other_folders=True,  # what `WordVectors.save` writes
)


def load(folder: Path, device: str = "cpu") -> WordVectors:
    """Load the word vectors in `folder`, on the CPU; raise the errors of `WordVectors.load`."""
    return WordVectors.load(folder)
