"""The window language model: the network in plain NumPy, both objectives, frozen embeddings, saving."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lexloom.models.window_lm import WindowLM, WindowLMConfig, dropout, scale_to_unit_rms

SIZE, CONTEXT, DIM = 12, 3, 8
CONFIG = WindowLMConfig(
    vocabulary=SIZE,
    context=CONTEXT,
    dim=DIM,
    padding=0,
    width=16,
    depth=2,
    features=16,
    dropout=0.0,
    cutoffs=(4, 8),
)


def embeddings() -> torch.Tensor:
    return torch.randn(SIZE, DIM, generator=torch.Generator().manual_seed(0))


def made(**changes: Any) -> WindowLM:
    """A model whose weights are all nonzero."""
    torch.manual_seed(1)
    model = WindowLM(replace(CONFIG, **changes), embeddings())
    for name, parameter in model.named_parameters():
        if name != "embeddings":
            torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def windows(rows: int = 40) -> torch.Tensor:
    return torch.randint(0, SIZE, (rows, CONTEXT), generator=torch.Generator().manual_seed(2))


def fit(model: WindowLM, inputs: torch.Tensor, labels: torch.Tensor, steps: int = 150) -> float:
    """Train on one batch, and return the final loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(inputs, labels).backward()
        optimizer.step()
    model.eval()
    return model.loss(inputs, labels).item()


def test_network_equals_numpy() -> None:
    model = made(output="full", activation="relu")
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}

    def normalized(values: np.ndarray, name: str) -> np.ndarray:
        centred = values - values.mean(1, keepdims=True)
        scaled = centred / np.sqrt(values.var(1, keepdims=True) + 1e-5)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def dense(values: np.ndarray, name: str) -> np.ndarray:
        return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    table = embeddings().numpy()
    hidden = np.maximum(dense(table[windows().numpy()].reshape(-1, CONTEXT * DIM), "first"), 0)
    hidden = hidden + np.maximum(dense(normalized(hidden, "blocks.0.norm"), "blocks.0.dense"), 0)
    logits = dense(dense(normalized(hidden, "norm"), "last"), "softmax")
    expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(model.log_probabilities(windows()).detach(), expected, rtol=1e-4, atol=1e-5)


def test_initial_predictions_are_the_unigram() -> None:
    counts = torch.tensor([40, 20, 10, 5, 5, 5, 5, 4, 3, 2, 1, 0])
    model = WindowLM(CONFIG, embeddings(), counts)
    probabilities = (counts + 0.5) / (counts + 0.5).sum()
    torch.testing.assert_close(
        model.log_probabilities(windows()).detach().exp(),
        probabilities.expand(40, SIZE),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize("output", ["adaptive", "full", "tied"])
@pytest.mark.parametrize("fine_tuned", [False, True])
def test_training_learns_a_function_of_the_window(output: Any, fine_tuned: bool) -> None:
    model = WindowLM(replace(CONFIG, output=output, fine_tuned=fine_tuned), embeddings())
    labels = windows()[:, 0]  # of all tokens the farthest
    before = model.embeddings.detach().clone()
    assert fit(model, windows(), labels) < 0.05
    assert model.best(windows(), 1)[:, 0].tolist() == labels.tolist()
    assert torch.equal(before, model.embeddings) is not fine_tuned


def test_frozen_embeddings_are_not_in_checkpoints() -> None:
    assert "embeddings" not in made().state_dict()
    assert "embeddings" in made(fine_tuned=True).state_dict()


def test_scaled_embeddings_have_unit_rms() -> None:
    expected = torch.tensor([[3.0, -4.0], [0.0, 5.0]]) / (50 / 4) ** 0.5
    torch.testing.assert_close(scale_to_unit_rms(torch.tensor([[30.0, -40.0], [0.0, 50.0]])), expected)
    assert not scale_to_unit_rms(torch.zeros(2, 2)).any()


@pytest.mark.parametrize("output", ["adaptive", "full", "tied"])
def test_loss_best_and_logits_are_consistent(output: Any) -> None:
    model = made(output=output)
    labels = windows(40)[:, 1]
    logs = model.log_probabilities(windows())
    torch.testing.assert_close(logs.exp().sum(1), torch.ones(40))
    torch.testing.assert_close(model.loss(windows(), labels), -logs.gather(1, labels[:, None]).mean())
    torch.testing.assert_close(logs.gather(1, model.best(windows(), 5)), logs.topk(5).values)
    torch.testing.assert_close(model.next_logits(windows()), logs)


@pytest.mark.parametrize("error", ["squared", "cosine"])
def test_embedding_objective_predicts_the_nearest_token(error: Any) -> None:
    model = made(objective="embedding", error=error)
    predicted = model.features(windows())
    table = model.embeddings
    if error == "squared":
        order = torch.cdist(predicted, table).argsort(dim=1)
        expected = (predicted - table[windows()[:, 0]]).square().mean()
    else:
        cosines = torch.nn.functional.cosine_similarity(predicted[:, None], table[None], dim=2)
        order = (-cosines).argsort(dim=1)
        expected = 1 - cosines.gather(1, windows()[:, :1]).mean()
    assert model.best(windows(), 3).tolist() == order[:, :3].tolist()
    assert model.next_logits(windows()).argmax(1).tolist() == order[:, 0].tolist()
    torch.testing.assert_close(model.loss(windows(), windows()[:, 0]), expected)
    with pytest.raises(ValueError, match="has no probabilities"):
        model.log_probabilities(windows())


@pytest.mark.parametrize("error", ["squared", "cosine"])
def test_embedding_objective_learns_a_function_of_the_window(error: Any) -> None:
    model = WindowLM(replace(CONFIG, objective="embedding", error=error), embeddings())
    labels = windows()[:, 2]
    fit(model, windows(), labels)
    assert (model.best(windows(), 1)[:, 0] == labels).float().mean() > 0.95


def test_texts_are_truncated_and_padded_on_the_left() -> None:
    model = made(padding=7)
    torch.testing.assert_close(
        model.next_logits(torch.tensor([[5, 4, 3, 2, 1]])), model.next_logits(torch.tensor([[3, 2, 1]]))
    )
    torch.testing.assert_close(
        model.next_logits(torch.tensor([[1]])), model.next_logits(torch.tensor([[7, 7, 1]]))
    )
    assert model.next_logits(torch.empty((1, 0), dtype=torch.int64)).shape == (1, SIZE)


def test_dropout_zeroes_its_rate_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    values = torch.ones(1000, 101, requires_grad=True)
    dropped = dropout(values, 0.25)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.005)
    assert dropped.max().item() == pytest.approx(1 / 0.75)
    dropped.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, dropped.detach())
    torch.manual_seed(0)
    assert torch.equal(dropout(values, 0.25), dropped), "the seed decides what is dropped"


def test_dropout_is_off_in_eval_mode() -> None:
    model = made(dropout=0.5)
    assert torch.equal(model.features(windows()), model.features(windows()))
    model.train()
    assert not torch.equal(model.features(windows()), model.features(windows()))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fine_tuned": True},
        {"output": "full"},
        {"output": "tied"},
        {"output": "tied", "fine_tuned": True},
        {"objective": "embedding"},
        {"objective": "embedding", "output": "tied"},
    ],
)
def test_loaded_model_predicts_like_the_saved_one(changes: dict[str, Any], tmp_path: Path) -> None:
    model = made(**changes)
    model.save(tmp_path, {"seed": 3})
    loaded = WindowLM.load(tmp_path)
    assert torch.equal(loaded.next_logits(windows()), model.next_logits(windows()))
    assert loaded.config == model.config
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 3
    assert not loaded.training


def test_folder_of_another_model_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model.safetensors is missing"):
        WindowLM.load(tmp_path)
    made().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, complaint in [
        ({"model": "word2vec"}, "it is a model of the kind 'word2vec'"),
        ({"shape": {**config["shape"], "width": 17}}, "can't be read"),
        ({"shape": {**config["shape"], "colour": 1}}, "colour"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=complaint):
            WindowLM.load(tmp_path)
    made().save(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(ValueError, match="can't be read"):
        WindowLM.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"width": 0}, "width is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"cutoffs": (8, 4)}, r"cutoffs are \[8, 4\]: they must be positive"),
        ({"cutoffs": (0, 4)}, "they must be positive and increase"),
        ({"padding": SIZE}, "padding is 12: it must be below 12"),
        ({"activation": "sine"}, "'sine': it must be one of relu, gelu, silu, tanh"),
        ({"objective": "embedding", "fine_tuned": True}, "they would collapse"),
    ],
)
def test_invalid_configurations_are_rejected(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(CONFIG, **changes)


def test_embeddings_and_counts_of_another_vocabulary_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"embeddings are 12 x 9, but the model has 12 tokens of 8 floats"):
        WindowLM(CONFIG, torch.zeros(SIZE, 9))
    with pytest.raises(ValueError, match="there are 5 counts for 12 tokens"):
        WindowLM(CONFIG, embeddings(), torch.ones(5))


def test_adaptive_softmax_without_cutoffs_is_full() -> None:
    """If no cutoff is below V, the adaptive softmax is a full one."""
    assert made(cutoffs=(2000,)).log_probabilities(windows()).shape == (40, SIZE)
