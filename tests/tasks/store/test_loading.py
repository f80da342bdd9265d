"""The Python API loads models by name, key or folder."""

import pytest
import torch

import lexloom
from lexloom.tasks.store.artifacts import Store
from lexloom.tasks.store.names import name_model
from tests.deployments.store import shelve, write_transformer, write_words


def test_models_are_loaded_by_name(store: Store) -> None:
    for stage, key, write in (
        ("train_word2vec", "v" * 24, write_words),
        ("train_transformer", "t" * 24, write_transformer),
    ):
        shelve(store, stage, key, write)
        name_model(store, (stage, key), f"my-{key[0]}")
    vectors = lexloom.load_word_vectors("my-v")
    assert vectors.neighbours(["war"], 1)[0][0][0] == "wars"
    for same in ("vvv", "latest", store.folder("train_word2vec", "v" * 24)):
        assert torch.equal(lexloom.load_word_vectors(same).vectors, vectors.vectors)
    assert lexloom.load_language_model("my-t").prompt("the") == "the"
    with pytest.raises(ValueError, match="my-v is train_word2vec/vvvvvvvv, but this command needs a train_s"):
        lexloom.load_classifier("my-v")
