"""`lexloom export` writes models in other tools' formats, and rejects what a format can't represent."""

import json
import sys
from pathlib import Path

import pytest
from gensim.models import KeyedVectors
from gguf import GGUFReader

from lexloom.deployments.cli.main import main
from lexloom.tasks.store.artifacts import Store
from tests.deployments.cli.test_main import complaint
from tests.deployments.store import fill, transformer_model, word_vectors


def test_a_transformer_is_written_as_gguf(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(store)
    assert main(["export", "latest", "--to", "gguf"]) == 0
    assert capsys.readouterr().out.startswith("t1.gguf  ")
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "t1.gguf").tensors}
    expected = transformer_model().embedding.weight.detach().numpy()
    assert (tensors["token_embd.weight"] == expected).all()
    said = complaint(capsys, "export", "t1", "--to", "gguf")
    assert "t1.gguf already exists: remove it, or choose another file with --output" in said


@pytest.mark.parametrize(("to", "name"), [("word2vec", "v1.bin"), ("word2vec-text", "v1.txt")])
def test_word_vectors_are_written_for_gensim(store: Store, tmp_path: Path, to: str, name: str) -> None:
    fill(store)
    assert main(["export", "v1", "--to", to]) == 0
    assert main(["export", "latest", "--to", to, "--output", str(tmp_path / "copy")]) == 0
    for file in (tmp_path / name, tmp_path / "copy"):
        found = KeyedVectors.load_word2vec_format(str(file), binary=to == "word2vec")
        assert (found["peace"] == word_vectors()["peace"].numpy()).all()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["w1", "--to", "gguf"],
            "a window language model, which can't be exported to gguf: no other",
        ),
        (["s1", "--to", "gguf"], "can't be exported to gguf"),
        (["v1", "--to", "gguf"], "can't be exported to gguf"),
        (["t1", "--to", "word2vec"], "a transformer, which can't be exported to word2vec: use gguf"),
        (["t1", "--to", "onnx"], "there is no export format 'onnx': use gguf, word2vec, word2vec-text"),
        (["t1", "--to", "gguf", "--output", "no/m.gguf"], "the folder no does not exist"),
        (["9", "--to", "gguf"], "9 is neither a model folder nor a prefix of a model's name or key"),
    ],
)
def test_what_a_format_does_not_support_is_rejected(
    store: Store, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    fill(store)
    assert says in complaint(capsys, "export", *arguments)
    assert not list(Path.cwd().glob("*.gguf")), "no incomplete file is left"


def test_without_gguf_the_error_names_the_extra(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)
    monkeypatch.setitem(sys.modules, "gguf", None)
    said = complaint(capsys, "export", "t1", "--to", "gguf")
    assert said == "error: gguf is not installed: pip install 'lexloom[gguf]'"


def test_a_damaged_model_leaves_no_file(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(store)
    (store.folder("train_transformer", "t1") / "tokenizer" / "encoding.json").write_text(json.dumps({}))
    assert "can't be read" in complaint(capsys, "export", "t1", "--to", "gguf")
    assert {path.name for path in tmp_path.iterdir()} == {"store"}
