"""Chunked cross-entropy equals torch's loss and gradients, without holding all logits."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lexloom.models.layers import cross_entropy
from lexloom.models.layers.cross_entropy import linear_cross_entropy

N, C, V = 23, 6, 10


@pytest.fixture(params=[3 * V, 8 * V, 1000 * V], ids=["chunks of 3", "of 8", "one"])
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    allow_logits(monkeypatch, request.param)


def allow_logits(monkeypatch: pytest.MonkeyPatch, logits: int) -> None:
    monkeypatch.setitem(cross_entropy.CHUNK_LOGITS, "cpu", logits)
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", 1)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(N, C, generator=generator, requires_grad=True)
    weight = torch.randn(V, C, generator=generator, requires_grad=True)
    return features, weight, torch.randint(V, (N,), generator=generator, dtype=torch.int32)


@pytest.mark.usefixtures("_chunks")
def test_loss_and_gradients_equal_torchs_on_full_logits() -> None:
    features, weight, labels = inputs()
    loss = linear_cross_entropy(features, weight, labels)
    whole = F.cross_entropy(features @ weight.T, labels.long(), reduction="sum")
    torch.testing.assert_close(loss, whole)
    ours = torch.autograd.grad(3 * loss, (features, weight))
    theirs = torch.autograd.grad(3 * whole, (features, weight))
    torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(features, weight, labels), whole.detach())


@pytest.mark.usefixtures("_chunks")
def test_bias_is_added_and_gets_a_gradient() -> None:
    features, weight, labels = inputs()
    bias = torch.linspace(-9, 9, V, requires_grad=True)
    ours = linear_cross_entropy(features, weight, labels, bias)
    whole = F.cross_entropy(F.linear(features, weight, bias), labels.long(), reduction="sum")
    torch.testing.assert_close(ours, whole)
    found = torch.autograd.grad(ours, (features, weight, bias))
    torch.testing.assert_close(found, torch.autograd.grad(whole, (features, weight, bias)))
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(features, weight, labels, bias), whole)


def test_loss_is_finite_for_huge_logits_and_zero_without_rows() -> None:
    weight = torch.tensor([[1.0], [-1.0]])
    assert linear_cross_entropy(torch.tensor([[1e4]]), weight, torch.tensor([1])).item() == 2e4
    features = torch.empty(0, 1, requires_grad=True)
    loss = linear_cross_entropy(features, weight.requires_grad_(), torch.empty(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert weight.grad is not None
    assert weight.grad.abs().sum() == 0


def test_gradients_equal_finite_differences() -> None:
    features, weight, labels = inputs()
    weight64, features64 = weight.detach().double(), features.detach().double()
    (gradient,) = torch.autograd.grad(linear_cross_entropy(features, weight, labels), weight)
    for row, column in ((0, 0), (3, 5), (9, 2)):
        moved = weight64.clone()
        moved[row, column] += 1e-6
        losses = [
            F.cross_entropy(features64 @ w.T, labels.long(), reduction="sum") for w in (weight64, moved)
        ]
        assert float(gradient[row, column]) == pytest.approx(float(losses[1] - losses[0]) / 1e-6, abs=1e-4)


def test_tied_weight_gets_gradients_from_both_uses() -> None:
    _, weight, labels = inputs()
    ours = torch.autograd.grad(linear_cross_entropy(F.embedding(labels, weight), weight, labels), weight)
    logits = F.embedding(labels, weight) @ weight.T
    torch.testing.assert_close(
        ours, torch.autograd.grad(F.cross_entropy(logits, labels.long(), reduction="sum"), weight)
    )


@pytest.mark.usefixtures("_chunks")
def test_autocast_result_is_close() -> None:
    features, weight, labels = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(features, weight, labels)
    assert loss.dtype == torch.float32
    exact = F.cross_entropy(features @ weight.T, labels.long(), reduction="sum")
    assert loss.item() == pytest.approx(exact.item(), rel=0.01)
    ours = torch.autograd.grad(loss, (features, weight))
    theirs = torch.autograd.grad(exact, (features, weight))
    torch.testing.assert_close(ours, theirs, atol=0.01, rtol=0.05)


def test_at_most_one_chunk_of_logits_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    allow_logits(monkeypatch, 3 * V + 1)
    largest = 0
    linear = F.linear

    def watched(features: Tensor, weight: Tensor) -> Tensor:
        nonlocal largest
        logits = linear(features, weight)
        largest = max(largest, logits.numel())
        return logits

    monkeypatch.setattr(F, "linear", watched)
    linear_cross_entropy(*inputs()).backward()
    assert largest == 3 * V
