"""RMSNorm equals torch's values and gradients in every dtype."""

import pytest
import torch
from torch.nn import functional as F

from lexloom.models.layers.rms_norm import RMSNorm, RMSNormFunction


def test_gradients_equal_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *inputs: RMSNormFunction.apply(*inputs, 1e-3), (x, weight))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_values_and_gradients_equal_torchs(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    norm = RMSNorm(16, 1e-6)
    torch.nn.init.normal_(norm.weight)
    x = (torch.randn(4, 7, 16) * 3).to(dtype).requires_grad_()
    wanted = F.rms_norm(x.float(), (16,), norm.weight, 1e-6)
    found = norm(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), wanted, rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        torch.testing.assert_close(norm(x).float(), wanted, rtol=tolerance, atol=tolerance)
    upstream = torch.randn(4, 7, 16)
    ours = torch.autograd.grad(found, (x, norm.weight), upstream.to(dtype))
    theirs = torch.autograd.grad(wanted, (x, norm.weight), upstream)
    assert ours[1].dtype == torch.float32
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=tolerance, atol=10 * tolerance)


def test_rows_of_zeros_stay_finite() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    RMSNorm(8, 1e-6)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
