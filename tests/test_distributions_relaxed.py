import math

import extremes
import pyro.distributions as dist
import pytest
import torch
from torch.nn.functional import one_hot

from pyro_vae.distributions import LogOddsRelaxedBernoulli, LogRelaxedOneHotCategorical, from_log_space
from pyro_vae.testing import check_own_draws


def test_LogRelaxedOneHotCategorical_density_is_that_of_torch_where_both_are_exact() -> None:
    logits, temperature = torch.randn(3, 4, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    q = LogRelaxedOneHotCategorical(temperature, logits)
    log_y = q.sample()
    stock = dist.RelaxedOneHotCategorical(temperature, logits=logits)
    # of log-ratios in place of y, whose Jacobian is the product of all y
    torch.testing.assert_close(q.log_prob(log_y), stock.log_prob(log_y.exp()) + log_y.sum(-1))


def test_LogOddsRelaxedBernoulli_density_is_that_of_torch_where_both_are_exact() -> None:
    logits, temperature = torch.randn(7, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    q = LogOddsRelaxedBernoulli(temperature, logits)
    log_odds = q.sample()
    y = log_odds.sigmoid()
    stock = dist.RelaxedBernoulli(temperature, logits=logits)
    torch.testing.assert_close(q.log_prob(log_odds), stock.log_prob(y) + (y * (1 - y)).log())


def test_LogRelaxedOneHotCategorical_largest_coordinate_is_categorical_at_any_temperature() -> None:
    # frequencies of the argmax against softmax(logits), within 5 standard errors
    logits = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    for temperature in (1e-3, 0.1, 2.0):
        log_y = LogRelaxedOneHotCategorical(torch.tensor(temperature).double(), logits).sample(torch.Size((10000,)))
        frequency = one_hot(log_y.argmax(-1), 3).double().mean(0)
        standard_error = (logits.softmax(-1) * (1 - logits.softmax(-1)) / 10000).sqrt()
        assert ((frequency - logits.softmax(-1)).abs() < 5 * standard_error).all()


def test_LogRelaxedOneHotCategorical_coordinate_of_two_is_a_relaxed_bernoulli() -> None:
    # Kolmogorov-Smirnov at 2.3 / sqrt(n): a right sampler fails with probability 5e-5. With two categories,
    # logit(y_1) = (l_1 - l_2 + Logistic noise) / temperature.
    log_y = LogRelaxedOneHotCategorical(torch.tensor(0.6).double(), torch.tensor([1.0, 0.2]).double())
    draws = log_y.sample(torch.Size((5000,)))
    relaxed = LogOddsRelaxedBernoulli(torch.tensor(0.6).double(), torch.tensor(0.8).double()).sample(
        torch.Size((5000,))
    )
    empirical = (torch.arange(5000, dtype=torch.float64) + 0.5) / 5000
    for log_odds in (draws[:, 0] - draws[:, 1], relaxed):
        probability = (log_odds * 0.6 - 0.8).sigmoid().sort().values
        assert (probability - empirical).abs().max() < 2.3 / math.sqrt(5000)


# Log-densities of clamped draws gave 2.10, 86 and 2.57 in place of 4.88, 117 and 3.07 (temperature .05, .3 and .3).
@pytest.mark.parametrize(("spread", "temperature"), [(1, 0.05), (1, 0.01), (5, 0.1), (10, 0.3), (10, 0.1), (10, 1e-3)])
def test_LogRelaxedOneHotCategorical_divergence_in_single_precision(spread: float, temperature: float) -> None:
    logits = spread * torch.randn(10)
    q, p = (LogRelaxedOneHotCategorical(torch.tensor(temperature), each) for each in (logits, torch.zeros(10)))
    assert check_own_draws(q, p, extremes.relaxed_one_hot_divergence(logits)) < 5


@pytest.mark.parametrize(
    ("logit", "temperature", "right"),
    [(5, 0.3, 3.07), (5, 0.1, 3.07), (10, 0.5, 8.00), (10, 0.3, 8.00), (20, 0.5, 18.00)],
)
def test_LogOddsRelaxedBernoulli_divergence_in_single_precision(logit: float, temperature: float, right: float) -> None:
    assert extremes.relaxed_bernoulli_divergence(logit) == pytest.approx(right, abs=5e-3)
    q, p = (LogOddsRelaxedBernoulli(torch.tensor(temperature), torch.tensor(float(a))) for a in (logit, 0))
    assert check_own_draws(q, p, extremes.relaxed_bernoulli_divergence(logit)) < 5


def test_LogRelaxedOneHotCategorical_particles_and_batches_broadcast() -> None:
    for q in (
        LogRelaxedOneHotCategorical(torch.tensor(0.5), torch.randn(4, 3)),
        LogOddsRelaxedBernoulli(torch.tensor(0.5), torch.randn(4)),
    ):
        expanded = q.expand([6, 4])
        assert (expanded.batch_shape, expanded.rsample().shape) == ((6, 4), (6, 4, *q.event_shape))
        z = expanded.sample()
        torch.testing.assert_close(q.log_prob(z), expanded.log_prob(z))


def test_LogRelaxedOneHotCategorical_gradients_are_finite_at_low_temperatures() -> None:
    for kind in (LogRelaxedOneHotCategorical, LogOddsRelaxedBernoulli):
        logits = (10 * torch.randn(10)).requires_grad_()
        q = kind(torch.tensor(1e-3), logits)
        z = q.rsample(torch.Size((5000,)))
        (gradient,) = torch.autograd.grad(q.log_prob(z).sum() + from_log_space(q.support, z).sum(), logits)
        assert gradient.isfinite().all()
