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
    exports={"word2vec": ".bin", "word2vec-text": ".txt"},
)


def load(folder: Path, device: str = "cpu") -> WordVectors:
    """Load the word vectors in `folder`, on the CPU; raise the errors of `WordVectors.load`."""
    return WordVectors.load(folder)


def export(folder: Path, to: str, file: Path) -> list[str]:
    """Write the word vectors in `folder` in word2vec's binary or text format.

    Raises the errors of `WordVectors.load` and `WordVectors.save_word2vec`.
    """
    WordVectors.load(folder).save_word2vec(file, binary=to == "word2vec")
    return []
