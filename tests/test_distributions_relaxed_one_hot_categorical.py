import math

import pyro.distributions as dist
import pytest
import torch

from pyro_vae.distributions import RelaxedOneHotCategorical


def test_density_is_that_of_torch_where_both_are_exact() -> None:
    logits, temperature = torch.randn(3, 4, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    q = RelaxedOneHotCategorical(temperature, logits)
    y = q.sample()
    stock = dist.RelaxedOneHotCategorical(temperature, logits=logits)
    torch.testing.assert_close(q.log_prob(y), stock.log_prob(y))


def test_density_integrates_to_one_on_the_simplex() -> None:
    # at temperature 1 the density is bounded, so that the midpoint rule converges
    cells = 400
    side = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    first, share = torch.meshgrid(side, side, indexing="ij")
    second = share * (1 - first)
    y = torch.stack([first, second, 1 - first - second], -1)
    q = RelaxedOneHotCategorical(torch.ones((), dtype=torch.float64), torch.tensor([0.5, -0.3, 0.0]).double())
    mass = q.log_prob(y).exp() * (1 - first) / cells**2
    assert mass.sum().item() == pytest.approx(1, abs=1e-3)


def test_largest_coordinate_is_categorical_at_any_temperature() -> None:
    # frequencies of the argmax against softmax(logits), within 5 standard errors
    logits = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    for temperature in (0.1, 2.0):
        y = RelaxedOneHotCategorical(torch.tensor(temperature).double(), logits).sample(torch.Size((10000,)))
        frequency = torch.nn.functional.one_hot(y.argmax(-1), 3).double().mean(0)
        standard_error = (logits.softmax(-1) * (1 - logits.softmax(-1)) / 10000).sqrt()
        assert ((frequency - logits.softmax(-1)).abs() < 5 * standard_error).all()


def test_a_coordinate_of_two_is_a_relaxed_bernoulli() -> None:
    # Kolmogorov-Smirnov at 2.3 / sqrt(n): a right sampler fails with probability 5e-5. With two categories,
    # logit(y_1) = (l_1 - l_2 + Logistic noise) / temperature.
    y = RelaxedOneHotCategorical(torch.tensor(0.6).double(), torch.tensor([1.0, 0.2]).double())
    draws = y.sample(torch.Size((5000,)))
    probability = ((draws[:, 0] / draws[:, 1]).log() * 0.6 - 0.8).sigmoid().sort().values
    empirical = (torch.arange(5000, dtype=torch.float64) + 0.5) / 5000
    assert (probability - empirical).abs().max() < 2.3 / math.sqrt(5000)


def test_single_precision_holds_at_low_temperatures() -> None:
    logits = (3 * torch.randn(10)).requires_grad_()
    q = RelaxedOneHotCategorical(torch.tensor(0.05), logits)
    y = q.rsample(torch.Size((5000,)))
    assert q.support.check(y).all()
    log_prob = q.log_prob(y)
    assert log_prob.isfinite().all()
    assert torch.autograd.grad(log_prob.sum() + y.square().sum(), logits)[0].isfinite().all()


def test_particles_and_batches_broadcast() -> None:
    q = RelaxedOneHotCategorical(torch.tensor(0.5), torch.randn(4, 3))
    expanded = q.expand([6, 4])
    assert (expanded.batch_shape, expanded.rsample().shape) == ((6, 4), (6, 4, 3))
    y = expanded.sample()
    torch.testing.assert_close(q.log_prob(y), expanded.log_prob(y))
