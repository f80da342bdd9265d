"""A transformer's folder: a saved model is loaded unchanged, and invalid folders are rejected."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lexloom.models.transformer.hf_io import load, save
from lexloom.models.transformer.model import Transformer, TransformerConfig

CONFIG = TransformerConfig(vocabulary=11, context=8, layers=2, width=16, heads=2, end_of_text=10)


@pytest.fixture(params=["modern", "gpt2"])
def model(request: pytest.FixtureRequest) -> Transformer:
    torch.manual_seed(0)
    made = Transformer(TransformerConfig(**{**vars(CONFIG), "ffn_dim": 0, "style": request.param}))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


def test_saved_model_is_loaded(model: Transformer, tmp_path: Path) -> None:
    save(model, tmp_path)
    loaded = load(tmp_path)
    assert loaded.config == model.config
    assert not loaded.training
    for (name, ours), (other, theirs) in zip(
        model.state_dict().items(), loaded.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(ours, theirs), name


def test_tied_embedding_is_stored_once_and_stays_tied(tmp_path: Path) -> None:
    model = Transformer(
        TransformerConfig(vocabulary=11, context=8, layers=1, width=16, heads=2, tie_embeddings=True)
    )
    save(model, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = load(tmp_path)
    assert loaded.head.weight is loaded.embedding.weight


def test_files_are_readable_by_all(model: Transformer, tmp_path: Path) -> None:
    save(model, tmp_path)
    umask = os.umask(0)
    os.umask(umask)
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask, path


def test_end_of_text_is_exported(model: Transformer, tmp_path: Path) -> None:
    save(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == 10


def change_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors") | changes
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "model.safetensors")


def test_damaged_folders_are_rejected(tmp_path: Path) -> None:
    def damaged(what: str) -> Path:
        save(Transformer(CONFIG), tmp_path / what)
        return tmp_path / what

    folder = damaged("another kind")
    (folder / "lexloom.json").write_text(json.dumps({"model": "window_lm", "format": 1, "config": {}}))
    with pytest.raises(ValueError, match=r"does not describe a transformer \(the model is a window_lm"):
        load(folder)
    folder = damaged("no description")
    (folder / "lexloom.json").unlink()
    with pytest.raises(FileNotFoundError, match="does not contain a transformer"):
        load(folder)
    folder = damaged("newer")
    (folder / "lexloom.json").write_text(json.dumps({"model": "transformer", "format": 9, "config": {}}))
    with pytest.raises(ValueError, match="its format is 9"):
        load(folder)
    folder = damaged("no JSON")
    (folder / "lexloom.json").write_text("{")
    with pytest.raises(ValueError, match="does not describe a transformer"):
        load(folder)
    folder = damaged("unknown field")
    (folder / "lexloom.json").write_text(
        json.dumps({"model": "transformer", "format": 1, "config": {**vars(CONFIG), "depth": 3}})
    )
    with pytest.raises(ValueError, match="depth"):
        load(folder)
    folder = damaged("no weights")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        load(folder)
    folder = damaged("cut off")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-10])
    with pytest.raises(ValueError, match="can't be read"):
        load(folder)
    folder = damaged("a tensor too few")
    change_weights(folder, **{"model.norm.weight": None})
    with pytest.raises(ValueError, match=r"missing or unknown tensors, model\.norm\.weight"):
        load(folder)
    folder = damaged("another shape")
    change_weights(folder, **{"model.norm.weight": torch.ones(5)})
    with pytest.raises(ValueError, match=r"model\.norm\.weight has the shape \(5,\).* \(16,\)"):
        load(folder)
