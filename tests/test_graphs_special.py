import math

import mpmath
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.graphs.special import digamma


def test_digamma_is_within_roundings_of_the_exact_one() -> None:
    torch.manual_seed(0)
    above = [torch.logspace(-8, 15, 200), torch.linspace(1.4, 1.5, 50), torch.rand(100) * 12]  # its zero is at 1.4616
    x = torch.cat([*above, -torch.rand(100) * 20]).double()
    exact = torch.tensor([float(mpmath.digamma(value)) for value in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(digamma(x), exact, rtol=2e-14, atol=2e-14)
    single = digamma(x.float())
    assert single.dtype == torch.float32
    rounded = torch.tensor([float(mpmath.digamma(value)) for value in x.float().tolist()])
    torch.testing.assert_close(single, rounded, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_digamma_at_its_ends_is_that_of_torch(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, -1.0, -7.0, 1e-30, 1e30, math.inf, math.nan], dtype=dtype)
    assert digamma(x)[0] == -math.inf
    torch.testing.assert_close(digamma(x), x.digamma(), equal_nan=True)


def test_digamma_stands_in_a_record_for_the_derivative_of_lgamma() -> None:
    def derivative(x: Tensor) -> Tensor:
        return torch.autograd.grad(x.requires_grad_().lgamma().sum(), x)[0]

    x = torch.rand(5) + 0.5
    graph = make_fx(derivative, {torch.ops.aten.digamma.default: digamma})(x)
    assert not graph.graph.find_nodes(op="call_function", target=torch.ops.aten.digamma.default)
    torch.testing.assert_close(graph(x), x.digamma())
