"""A store of four tiny models, created without training."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch

from lexloom.models.language_model import TOKENIZER
from lexloom.models.sentiment.classifier import save_classifier
from lexloom.models.tokenizer.tokenizer import Tokenizer
from lexloom.models.transformer import hf_io as transformer_folder
from lexloom.models.transformer.model import Transformer, TransformerConfig
from lexloom.models.window_lm import WindowLM, WindowLMConfig
from lexloom.models.word2vec.vectors import WordVectors
from lexloom.tasks.store.artifacts import InputEntry, Manifest, Store, Summary, list_files
from tests.models.tiny import write_backbone

TEXT = "the people of the union, and a <b>long</b> peace"
LABELS = ["bad", "good"]
# the angle between two words, in degrees, is the difference of these
ANGLES = {"war": 0, "wars": 10, "battle": 20, "peace": 90, "treaty": 95, "tea": 180}
CONTEXT = 3
AnyModel = TypeVar("AnyModel", bound=torch.nn.Module)


def shelve(
    store: Store,
    stage: str,
    key: str,
    write: Callable[[Path], None] = lambda folder: None,
    *,
    inputs: list[InputEntry] | None = None,
    facts: dict[str, Any] | None = None,
    rows: int = 1,
    unit: str = "rows",
    day: int = 1,
) -> str:
    """Put an artifact of 2020-01-`day` into the store; return its name, `stage/key`."""
    building = store.new_folder(stage, key)
    write(building)
    manifest = Manifest(
        stage=stage,
        version=1,
        key=key,
        created=datetime(2020, 1, day, 12, tzinfo=UTC),
        seconds=1,
        why=[],
        config={},
        inputs=inputs or [],
        files=list_files(building),
        summary=Summary(rows_in=1, unit_in="rows", rows=rows, unit=unit, facts=facts or {}),
        versions={},
    )
    store.commit(building, manifest)
    return f"{stage}/{key}"


def made_from(stage: str, key: str, name: str = "input", called: str | None = None) -> InputEntry:
    """An input; a source has no stage, but a name (`called`)."""
    return InputEntry(name=name, stage=stage, key=key, description={"name": called} if called else {})


def word_vectors() -> WordVectors:
    """Words on a circle: the cosine of two is that of the angle between them."""
    angles = torch.deg2rad(torch.tensor(list(ANGLES.values()), dtype=torch.float32))
    return WordVectors(list(ANGLES), torch.stack([angles.cos(), angles.sin()], 1))


def tokenizer() -> Tokenizer:
    return Tokenizer.of_characters(TEXT)


def window_model() -> WindowLM:
    torch.manual_seed(0)
    size = tokenizer().size
    config = WindowLMConfig(
        vocabulary=size, context=CONTEXT, dim=8, padding=tokenizer().end_of_text, width=16, features=8
    )
    return stirred(WindowLM(config)).eval()


def stirred(model: AnyModel) -> AnyModel:
    """Randomize the weights, so that inputs affect outputs; a new model's last layer is zero."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def transformer_model() -> Transformer:
    torch.manual_seed(0)
    ours = tokenizer()
    model = Transformer(
        TransformerConfig(
            vocabulary=ours.size, context=16, layers=1, width=16, heads=2, end_of_text=ours.end_of_text
        )
    )
    return stirred(model).eval()


def write_words(folder: Path) -> None:
    word_vectors().save(folder)


def write_windows(folder: Path) -> None:
    window_model().save(folder)
    tokenizer().save(folder / TOKENIZER)


def write_transformer(folder: Path) -> None:
    transformer_folder.save(transformer_model(), folder)
    tokenizer().save(folder / TOKENIZER)


def write_sentiment(folder: Path) -> None:
    backbone = write_backbone(folder / "backbone")
    torch.manual_seed(0)
    save_classifier(folder, backbone, LABELS, 16, {})


def fill(store: Store) -> dict[str, str]:
    """Put four models into the store; return the name of each by its kind."""
    shelve(store, "corpus", "books", inputs=[made_from("", "source", called="library/books.txt")])
    books = [made_from("corpus", "books")]
    return {
        "classifier": shelve(store, "train_sentiment", "s1", write_sentiment, inputs=books, day=2),
        "transformer": shelve(store, "train_transformer", "t1", write_transformer, inputs=books, day=3),
        "window": shelve(store, "train_window_lm", "w1", write_windows, inputs=books, day=2),
        "words": shelve(store, "train_word2vec", "v1", write_words, inputs=books, rows=6, day=2),
    }
