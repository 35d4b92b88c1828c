"""Censored times: their probability, their mean, and a fit that is not biased by what was cut off."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from scipy import integrate

from pyro_vae import VAE, conditionals, data, fit, likelihoods, nets, priors
from pyro_vae.distributions import Censored

BASES: dict[str, Any] = {
    "Normal": lambda: dist.Normal(torch.tensor(0.3, dtype=torch.double), 0.7),
    "LogNormal": lambda: dist.LogNormal(torch.tensor(0.3, dtype=torch.double), 0.7),
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("limit", [0.2, 1.0, 4.0])
def test_Censored_probabilities_sum_to_one_and_give_the_mean(base: str, limit: float) -> None:
    d = Censored(BASES[base](), torch.tensor(limit, dtype=torch.double))
    at_limit = float(d.log_prob(torch.tensor(limit, dtype=torch.double)).exp())

    def density(t: float) -> float:
        return float(d.log_prob(torch.tensor(t, dtype=torch.double)).exp())

    start = 1e-12 if base == "LogNormal" else -10.0
    below, _ = integrate.quad(density, start, limit - 1e-12, limit=200)
    mean, _ = integrate.quad(lambda t: t * density(t), start, limit - 1e-12, limit=200)
    assert below + at_limit == pytest.approx(1, abs=1e-6)
    assert float(d.mean) == pytest.approx(mean + limit * at_limit, abs=1e-6)
    assert density(limit + 0.1) == 0


@pytest.mark.parametrize("base", BASES)
def test_Censored_draws_have_its_mean_and_reach_the_limit(base: str) -> None:
    """Within five standard errors of 100,000 draws."""
    torch.manual_seed(0)
    d = Censored(BASES[base](), torch.tensor(1.0, dtype=torch.double))
    x = d.sample((100_000,))
    share = float(d.log_prob(torch.tensor(1.0, dtype=torch.double)).exp())
    assert float(x.mean()) == pytest.approx(float(d.mean), abs=5 * float(x.std()) / math.sqrt(len(x)))
    assert float((x == 1.0).double().mean()) == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / len(x)))


@pytest.mark.parametrize("base", BASES)
def test_Censored_without_a_limit_is_the_distribution_itself(base: str) -> None:
    x = torch.linspace(0.1, 3, 7, dtype=torch.double)
    loc = torch.tensor(0.3, dtype=torch.double, requires_grad=True)
    plain = getattr(dist, base)(loc, 0.7)
    d = Censored(plain, torch.tensor(math.inf, dtype=torch.double))
    assert torch.equal(d.log_prob(x), plain.log_prob(x))
    assert float(d.mean.detach()) == pytest.approx(float(plain.mean.detach()))
    assert bool(torch.autograd.grad(d.log_prob(x).sum(), loc)[0].isfinite())


def test_Censored_tail_keeps_its_digits() -> None:
    d = Censored(dist.Normal(torch.tensor(0.0), 1.0), torch.tensor(20.0))
    assert float(d.log_prob(torch.tensor(20.0))) == pytest.approx(-203.9171553710, rel=1e-6)  # log Phi(-20)


def test_Censored_refuses_other_distributions_and_data_beyond_their_limit() -> None:
    with pytest.raises(TypeError, match="expected a Normal or a LogNormal; got Exponential"):
        Censored(dist.Exponential(torch.tensor(1.0)), torch.tensor(1.0))
    with pytest.raises(ValueError, match="expected a LogNormal or a Normal; got Laplace"):
        likelihoods.Censored(likelihoods.Laplace(nets.MLP(2, [8]), 1))
    likelihood = likelihoods.Censored(likelihoods.LogNormal(nets.MLP(2, [8]), 1))
    with pytest.raises(ValueError, match="expected a limit of at least each datum; got 1 data beyond theirs"):
        likelihood.check_data(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 1.5]))


@pytest.mark.slow
def test_Censored_times_are_fitted_as_if_nothing_had_been_cut_off() -> None:
    """The location of a VAE without latent use is the maximum-likelihood estimate of 4,000 times, half of them cut."""
    generator = torch.Generator().manual_seed(0)
    times = (1.0 + 0.5 * torch.randn(4000, 1, generator=generator)).exp()
    end = torch.full((4000,), math.e)
    x = torch.minimum(times, end[:, None])
    limit = torch.where(times[:, 0] < end, torch.inf, x[:, 0])
    torch.manual_seed(0)
    vae = VAE(
        prior=priors.StandardNormal(1),
        likelihood=likelihoods.Censored(likelihoods.LogNormal(nets.MLP(1, []), 1)),
        posterior=conditionals.DiagonalNormal(nets.MLP(1, []), 1),
    )
    for name in ("weight",):  # the latent is not used, so that one Normal is fitted
        getattr(vae.likelihood.head.layer, name).data.zero_().requires_grad_(False)
    train = data.as_dataset(x).conditioned_on(limit)
    optimizer = torch.optim.Adam
    fit(vae, train, epochs=40, seed=0, progress=False, optimizer=lambda parameters: optimizer(parameters, lr=1e-2))
    fitted = vae.decode(torch.zeros(1, 1), torch.tensor([torch.inf])).base_dist.base_dist
    assert float(fitted.loc.detach()) == pytest.approx(1.0, abs=5 * 0.5 / math.sqrt(2000))
    assert float(fitted.scale.detach()) == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(2 * 2000))
