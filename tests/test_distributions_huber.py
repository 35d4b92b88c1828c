import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from pyro_vae.distributions import Huber
from pyro_vae.testing import check_density


def at(delta: float, loc: float = 0.0, scale: float = 1.0) -> Huber:
    return Huber(torch.tensor(loc, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64), delta)


@pytest.mark.parametrize("delta", [0.05, 0.3, 1.0, 1.345, 4.0])
def test_Huber_density_integrates_to_one_and_samples_come_from_it(delta: float) -> None:
    check_density(at(delta, loc=-2.0, scale=3.0))


@pytest.mark.parametrize("delta", [1e-3, 0.3, 1.0, 4.0])
def test_Huber_loss_is_its_negative_logarithm_up_to_the_normalizer(delta: float) -> None:
    x = torch.linspace(-9, 9, 301, dtype=torch.float64)
    d = at(delta, loc=0.5, scale=2.0)
    # of delta in the units of x, with the square of the scale below it
    loss = huber_loss(x, d.loc.expand(301), reduction="none", delta=delta * 2.0) / 2.0**2
    torch.testing.assert_close(-d.log_prob(x) - d.log_normalizer, loss, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("delta", [0.1, 1.0, 3.0])
def test_Huber_normalizer_and_variance_are_the_integrals(delta: float) -> None:
    d = at(delta, scale=0.7)
    x = torch.linspace(-400, 400, 2_000_001, dtype=torch.float64)
    mass = d.log_prob(x).exp()
    assert torch.trapezoid(mass, x).item() == pytest.approx(1, abs=1e-9)
    assert torch.trapezoid(mass * x**2, x).item() == pytest.approx(d.variance.item(), rel=1e-8)


def test_Huber_is_a_Normal_of_large_delta_and_a_Laplace_of_small() -> None:
    x = torch.linspace(-4, 4, 81, dtype=torch.float64)
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    normal, laplace = torch.distributions.Normal(zero, one), torch.distributions.Laplace(zero, one)
    torch.testing.assert_close(at(50.0).log_prob(x), normal.log_prob(x), atol=1e-12, rtol=0)
    torch.testing.assert_close(at(1e-4, scale=1e-4).log_prob(x), laplace.log_prob(x), atol=1e-7, rtol=0)
    assert at(1e-4, scale=1e-4).variance.item() == pytest.approx(laplace.variance.item(), rel=1e-7)


def test_Huber_gradients_stay_finite_in_single_precision_and_are_those_of_the_clipped_error() -> None:
    def pulls(x: float) -> Tensor:
        loc = torch.tensor(0.0, requires_grad=True)
        return torch.autograd.grad(Huber(loc, torch.tensor(1.0), 1.5).log_prob(torch.tensor(x)), loc)[0]

    assert [pulls(x).item() for x in (0.0, 0.5, -1.0, 3.0, -1e30)] == [0.0, 0.5, -1.0, 1.5, -1.5]


def test_Huber_expands_and_its_draws_are_reparameterized() -> None:
    loc, scale = torch.tensor(1.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    x = Huber(loc, scale, 0.5).expand([5, 3]).rsample([2])
    assert x.shape == (2, 5, 3)
    gradient = torch.autograd.grad(x.sum(), (loc, scale))
    assert gradient[0].item() == 30
    assert gradient[1].item() == pytest.approx(((x - 1) / 2).sum().item(), rel=1e-5)
    assert math.isfinite(x.sum().item())
