"""Output layers equal torch's cross-entropy, and their probabilities sum to 1."""

import pytest
import torch

from lexloom.models.layers.softmax import AdaptiveSoftmax, FullSoftmax

ROWS, WIDTH, SIZE = 30, 16, 50


def probabilities(size: int = SIZE) -> torch.Tensor:
    """Zipf's law."""
    frequencies = 1 / torch.arange(1, size + 1)
    return frequencies / frequencies.sum()


def adaptive(cutoffs: tuple[int, ...] = (10, 20)) -> AdaptiveSoftmax:
    layer = AdaptiveSoftmax(WIDTH, probabilities(), cutoffs)
    torch.manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def full() -> FullSoftmax:
    layer = FullSoftmax(WIDTH, probabilities())
    torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    return layer


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.randint(0, SIZE, (ROWS,), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("layer", [full(), adaptive(), adaptive((10,)), adaptive((1, 2, 49))])
def test_losses_match_probabilities_that_sum_to_one(
    layer: FullSoftmax | AdaptiveSoftmax, features: torch.Tensor, labels: torch.Tensor
) -> None:
    logs = layer.log_probabilities(features)
    assert logs.shape == (ROWS, SIZE)
    torch.testing.assert_close(logs.exp().sum(1), torch.ones(ROWS))
    expected = -logs.gather(1, labels[:, None]).mean()
    torch.testing.assert_close(layer.loss(features, labels), expected)


@pytest.mark.parametrize("layer", [full(), adaptive(), adaptive((10,)), adaptive((1, 2, 49))])
@pytest.mark.parametrize("k", [1, 5, SIZE])
def test_best_equals_topk_of_the_full_distribution(
    layer: FullSoftmax | AdaptiveSoftmax, features: torch.Tensor, k: int
) -> None:
    logs = layer.log_probabilities(features)
    best = layer.best(features, k)
    torch.testing.assert_close(logs.gather(1, best), logs.topk(k).values)
    assert all(len(set(row)) == k for row in best.tolist())


@pytest.mark.parametrize(
    "layer", [FullSoftmax(WIDTH, probabilities()), AdaptiveSoftmax(WIDTH, probabilities(), (10, 20))]
)
def test_initial_probabilities_are_the_given_ones(
    layer: FullSoftmax | AdaptiveSoftmax, features: torch.Tensor
) -> None:
    torch.testing.assert_close(layer.log_probabilities(features).exp(), probabilities().expand(ROWS, SIZE))


def test_tied_layer_trains_the_shared_weight(features: torch.Tensor, labels: torch.Tensor) -> None:
    table = torch.nn.Parameter(torch.randn(SIZE, WIDTH))
    layer = FullSoftmax(WIDTH, probabilities(), table)
    layer.loss(features, labels).backward()
    assert table.grad is not None
    assert table.grad.abs().sum() > 0
    assert layer.weight is table


def test_tail_without_labels_gets_no_gradient(features: torch.Tensor) -> None:
    layer = adaptive()
    layer.loss(features, torch.full((ROWS,), 30)).backward()
    (unused, used) = (tail.weight.grad for tail in layer.tails)
    assert not unused.any()
    assert used.any()


@pytest.mark.parametrize("cutoffs", [(20, 10), (10, 10), (0, 10), (10, SIZE)])
def test_cutoffs_that_leave_a_tail_empty_are_rejected(cutoffs: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must increase, between 0 and 50"):
        AdaptiveSoftmax(WIDTH, probabilities(), cutoffs)
