import math

import pytest
import torch

from pyro_vae.distributions import ContinuousBernoulli
from pyro_vae.testing import check_density


def exact_log_prob(logits: torch.Tensor, x: float) -> torch.Tensor:
    """x l - log((e^l - 1) / l) in double precision, from the textbook normalizer; its series within 1e-2 of 0."""
    series = math.log(2) + logits**2 / 12 - 7 * logits**4 / 1440
    away = torch.where(logits.abs() < 1e-2, 1.0, logits)
    log_c = torch.where(logits.abs() < 1e-2, series, torch.log(away / torch.tanh(away / 2)))
    return x * logits - torch.logaddexp(logits, torch.zeros_like(logits)) + log_c


def test_ContinuousBernoulli_normalizer_and_the_mean_have_the_published_values() -> None:
    d = ContinuousBernoulli(torch.logit(torch.tensor([0.3, 0.5], dtype=torch.float64)))
    assert d.log_normalizer.tolist() == pytest.approx([0.75058775, math.log(2)], abs=1e-8)
    assert d.mean.tolist() == pytest.approx([0.43022250, 0.5], abs=1e-8)


def test_ContinuousBernoulli_normalizer_has_its_series_near_one_half() -> None:
    e = torch.tensor([0.0, 1e-6, 1e-4, 1e-3, 1e-2], dtype=torch.float64)
    for sign in (1, -1):
        d = ContinuousBernoulli(torch.logit(0.5 + sign * e))
        torch.testing.assert_close(d.log_normalizer, math.log(2) + 4 / 3 * e**2 + 104 / 45 * e**4, atol=1e-11, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ContinuousBernoulli_density_and_gradient_are_exact_for_every_logit(dtype: torch.dtype) -> None:
    magnitudes = torch.cat([torch.logspace(-8, 2, 2001), torch.linspace(0.4, 0.6, 201)]).to(dtype)
    logits = torch.cat([-magnitudes, torch.zeros(1, dtype=dtype), magnitudes]).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-11
    for x in (0.0, 0.3, 1.0):
        log_prob, truth = ContinuousBernoulli(logits).log_prob(torch.tensor(x, dtype=dtype)), exact_log_prob(exact, x)
        (gradient,), (slope,) = torch.autograd.grad(log_prob.sum(), logits), torch.autograd.grad(truth.sum(), exact)
        # Rounding x itself to single precision moves x l by 6e-8 |l|, hence the relative part.
        torch.testing.assert_close(log_prob.double(), truth, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(gradient.double(), slope, atol=3 * tolerance, rtol=0)


def test_ContinuousBernoulli_mean_and_variance_are_the_derivatives_of_the_log_partition_function() -> None:
    logits = torch.linspace(-30, 30, 601, dtype=torch.float64).requires_grad_()
    d = ContinuousBernoulli(logits)
    partition = -d.log_prob(torch.tensor(0.0, dtype=torch.float64))  # A(l), since log p(0) = -A(l)
    (mean,) = torch.autograd.grad(partition.sum(), logits, create_graph=True)
    (variance,) = torch.autograd.grad(mean.sum(), logits)
    torch.testing.assert_close(d.mean, mean, atol=1e-10, rtol=0)
    torch.testing.assert_close(d.variance, variance, atol=1e-9, rtol=0)


@pytest.mark.parametrize("logit", [0.0, 1e-5, -0.3, 2.0, -40.0])
def test_ContinuousBernoulli_samples_come_from_the_density(logit: float) -> None:
    check_density(ContinuousBernoulli(torch.tensor(logit, dtype=torch.float64)))


@pytest.mark.parametrize("logit", [0.0, 5e-5, 2e-4, -0.3, 2.0, -40.0, 40.0])
def test_ContinuousBernoulli_quantiles_invert_the_distribution_function_and_have_its_gradient(logit: float) -> None:
    logits = torch.tensor(logit, dtype=torch.float64, requires_grad=True)
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    x = ContinuousBernoulli(logits).icdf(u)
    # F(x) = (e^(l x) - 1) / (e^l - 1), which tends to x.
    distribution = x if logit == 0 else torch.expm1(logits * x) / torch.expm1(logits)
    torch.testing.assert_close(distribution, u, atol=1e-9, rtol=0)
    gradient = torch.stack([torch.autograd.grad(value, logits, retain_graph=True)[0] for value in x])
    step = 1e-4
    with torch.no_grad():
        above, below = (ContinuousBernoulli(logits + change).icdf(u) for change in (step, -step))
    torch.testing.assert_close(gradient, (above - below) / (2 * step), atol=1e-6, rtol=0)


def test_ContinuousBernoulli_single_precision_quantiles_stay_in_the_interval() -> None:
    d = ContinuousBernoulli(torch.tensor([-200.0, -20.0, 0.0, 20.0, 200.0]))
    x = d.icdf(torch.tensor([0.0, 1e-7, 0.5, 1 - 6e-8])[:, None])
    assert bool(((x >= 0) & (x <= 1)).all())
