"""Every figure of random linear VAEs against its closed form, by public names alone.

The oracles have N = 200 data of 20 dims and 5 latents. ``EXACT`` ones have any weights and a guide of full covariance;
``DIAGONAL`` ones have weights with orthogonal columns, so that the posterior is a product over units.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles import LinearVAE
from torch import Tensor

from pyro_vae import VAE
from pyro_vae.evaluation import (
    active_units,
    ais,
    amortization_gap,
    bdmc,
    calibration,
    elbo_surgery,
    log_marginal_likelihood,
    rate_distortion,
    simulate,
)

pytestmark = pytest.mark.slow

N, D, L = 200, 20, 5
TEMPLATE = torch.zeros(N, D, dtype=torch.float64)
LONG_PATH: dict[str, Any] = {"num_temperatures": 1000, "num_leapfrog_steps": 3, "progress": False}


@pytest.fixture(params=range(10))
def seed(request: pytest.FixtureRequest) -> int:
    """Of oracle and draws."""
    torch.manual_seed(request.param)
    seed: int = request.param
    return seed


def uniform(low: float, high: float, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + seed)
    return low + (high - low) * torch.rand(size, dtype=torch.float64, generator=generator)


def any_oracle(seed: int) -> LinearVAE:
    return replace(LinearVAE.random(D, L, seed=seed), scale=uniform(0.3, 1.2, 1, seed).item())


def diagonal_oracle(seed: int, *, latent_dim: int = L) -> LinearVAE:
    """Its units' signal is up to its noise, for 200 data to tell the aggregate posterior; the last one's next to 0."""
    directions = torch.linalg.qr(LinearVAE.random(D, latent_dim, seed=seed).weight).Q
    ratios = uniform(0.1, 1.0, latent_dim, seed)
    ratios[-1] = 0.005
    scale = uniform(0.3, 1.2, 1, seed + 100).item()
    return LinearVAE(directions * scale * ratios.sqrt(), uniform(-1, 1, D, seed + 200), scale)


def scaled(oracle: LinearVAE, factor: float) -> VAE:
    """The oracle's VAE with a guide of its posterior's mean and so many times its scales."""
    vae = oracle.vae()
    vae.get_buffer("guide.posterior.scale_tril").mul_(factor)
    return vae


def test_log_marginal_likelihood_is_within_its_standard_errors(seed: int) -> None:
    oracle = any_oracle(seed)
    x = oracle.draw(N, seed)
    result = log_marginal_likelihood(scaled(oracle, 1.25), x, progress=False)
    z = (result.value - oracle.log_marginal_likelihood(x)) / result.standard_error
    assert (z.abs() < 3).double().mean() >= 0.99
    assert z.mean().abs() < 0.2  # its standard error is .07
    assert abs(z.std().item() - 1) < 5 / math.sqrt(2 * N)
    assert result.unreliable == []


def test_log_marginal_likelihood_is_exact_for_the_exact_posterior(seed: int) -> None:
    oracle = any_oracle(seed)
    x = oracle.draw(N, seed)
    result = log_marginal_likelihood(oracle.vae(), x, progress=False)
    assert (result.value - oracle.log_marginal_likelihood(x)).abs().max() < 1e-6
    assert result.unreliable == []


@pytest.mark.parametrize("seed", range(3), indirect=True)  # of the ten, since each takes half a minute
def test_ais_is_accurate_and_bdmc_encloses_log_p(seed: int) -> None:
    oracle = any_oracle(seed)
    vae = scaled(oracle, 1.25)  # which annealing does not use
    simulation = simulate(vae, TEMPLATE)
    exact = oracle.log_marginal_likelihood(simulation.x)
    alone = ais(vae, simulation.x, num_particles=8, **LONG_PATH)
    assert (alone.value - exact).mean().abs() < 0.05
    bounds = bdmc(vae, simulation, **LONG_PATH)
    below, above = exact - bounds.lower, bounds.upper - exact
    assert below.mean() > -3 * below.std() / math.sqrt(N)
    assert above.mean() > -3 * above.std() / math.sqrt(N)
    assert bounds.gap.value < 0.1
    assert min(alone.acceptance.min(), bounds.acceptance.min()) > 0.6


def test_elbo_surgery_is_that_of_the_closed_form(seed: int) -> None:
    oracle = diagonal_oracle(seed)
    vae = oracle.vae(diagonal=True)
    surgery = elbo_surgery(vae, simulate(vae, TEMPLATE).x, num_particles=20)
    ratios = 1 + oracle.weight.square().sum(0) / oracle.scale**2  # lambda_i / s^2
    information = ratios.log().sum().item() / 2
    # The aggregate posterior of the population is the prior. That of N data is off by KL <= log(1 + chi^2), and the
    # mean of chi^2 is that of the joint density against the product of its marginals, over N.
    excess = math.log1p((ratios.prod().item() - 1) / N)
    lower, upper, marginal = surgery.mutual_information, surgery.mutual_information_bound, surgery.marginal_kl
    assert abs(surgery.rate.value - information) < 3 * surgery.rate.standard_error
    assert -excess - 3 * lower.standard_error < lower.value - information < 3 * lower.standard_error
    assert -3 * marginal.standard_error < marginal.value < excess + 3 * marginal.standard_error
    assert upper.value > information - 3 * upper.standard_error
    assert upper.value - lower.value < 2 * excess


def test_active_units_are_those_of_the_closed_form(seed: int) -> None:
    oracle = diagonal_oracle(seed)
    vae = oracle.vae(diagonal=True)
    units = active_units(vae, simulate(vae, TEMPLATE).x)
    eigenvalues = oracle.weight.square().sum(0) + oracle.scale**2
    truth = 1 - oracle.scale**2 / eigenvalues
    assert ((units.variance["z"] - truth).abs() < 5 * units.standard_error["z"]).all()
    assert torch.equal(units.active["z"], eigenvalues > oracle.scale**2 / 0.99)
    assert units.count == L - 1


def test_evaluation_of_the_maximum_likelihood_estimate_is_exact_on_its_own_data(seed: int) -> None:
    """The means of the posterior have mean 0 and variances 1 - s^2 / lambda_i on the training data."""
    x = any_oracle(seed).draw(N, seed)
    oracle = LinearVAE.maximum_likelihood(x, L)
    vae = oracle.vae(diagonal=True)
    ratios = 1 + oracle.weight.square().sum(0) / oracle.scale**2
    units = active_units(vae, x)
    torch.testing.assert_close(units.variance["z"], 1 - 1 / ratios)
    assert units.count == L
    rate = rate_distortion(vae, x, analytic_kl=True).rate
    assert rate.value == pytest.approx(ratios.log().sum().item() / 2)
    value = log_marginal_likelihood(vae, x, num_particles=50, progress=False).value.sum().item()
    assert value == pytest.approx(LinearVAE.maximum_log_likelihood(x, L), abs=1e-6)


def test_amortization_gap_is_that_of_the_closed_form(seed: int) -> None:
    """A guide of f times the exact scales is (f^2 - 1) / 2 - log f nats below the best, for each unit."""
    oracle = diagonal_oracle(seed)
    vae = oracle.vae(diagonal=True)
    x = simulate(vae, TEMPLATE).x
    with torch.no_grad():
        vae.posterior.head.get_parameter("layer.bias")[L:] += math.log(1.25)
    result = amortization_gap(vae, x, progress=False)
    truth = L * ((1.25**2 - 1) / 2 - math.log(1.25))
    assert abs(result.gap.value - truth) < 3 * result.gap.standard_error
    assert result.gap.standard_error < 0.01
    torch.testing.assert_close(result.optimized_elbo, oracle.log_marginal_likelihood(x), atol=1e-3, rtol=0)


@pytest.mark.filterwarnings("ignore:log_marginal_likelihood")
def test_evaluation_flags_narrow_and_wide_guides_and_passes_exact_ones(seed: int) -> None:
    oracle = any_oracle(seed)
    narrow, exact, wide = (scaled(oracle, factor) for factor in (0.5, 1.0, 2.0))
    simulation = simulate(exact, TEMPLATE)
    of_narrow, of_exact, of_wide = (
        log_marginal_likelihood(vae, simulation.x, progress=False) for vae in (narrow, exact, wide)
    )
    assert len(of_narrow.unreliable) > 0.8 * N
    assert of_exact.unreliable == []
    assert of_wide.unreliable == []  # k-hat is blind to light tails
    shares = [result.effective_sample_size / 5000 for result in (of_narrow, of_exact, of_wide)]
    assert shares[0].mean() < 0.2
    assert shares[1].min() == pytest.approx(1)
    assert shares[2].mean() == pytest.approx((math.sqrt(7) / 4) ** L, rel=0.05)  # 1 / E_q[(p/q)^2], .126
    assert calibration(narrow, simulation).p_value < 1e-6
    assert calibration(exact, simulation).p_value > 0.001
    assert calibration(wide, simulation).p_value < 1e-6
