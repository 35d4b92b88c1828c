"""The amortization gap against closed forms."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearVAE, SimpleProgram, TwoStates
from torch import Tensor

from pyro_vae import VAE
from pyro_vae.evaluation import amortization_gap

SHIFT, LOG_FACTOR = 0.2, 0.3


def worsened(vae: VAE) -> VAE:
    """Guides moved and widened by the same amounts for every datum."""
    bias = vae.posterior.head.get_parameter("layer.bias")
    with torch.no_grad():
        bias[: len(bias) // 2] += SHIFT
        bias[len(bias) // 2 :] += LOG_FACTOR
    return vae


@pytest.mark.parametrize("orthogonal", [True, False])
def test_amortization_gap_is_that_of_the_closed_form(orthogonal: bool) -> None:
    """Below the best Gaussian of precision P: shift' P shift / 2 plus (f^2 - 1) / 2 - log f for each unit."""
    oracle = LinearVAE.random(6, 3, orthogonal=orthogonal)
    x = oracle.draw(20)
    result = amortization_gap(worsened(oracle.vae(diagonal=True)), x, num_particles=400, progress=False)
    precision = oracle.precision / oracle.scale**2
    factor = torch.tensor(LOG_FACTOR, dtype=torch.float64).exp()
    truth = SHIFT**2 * precision.sum() / 2 + 3 * ((factor**2 - 1) / 2 - LOG_FACTOR)
    assert abs(result.gap.value - truth) < 5 * result.gap.standard_error
    best = (oracle.log_marginal_likelihood(x) - oracle.diagonal_gap()).mean().item()
    optimized = result.estimates()["optimized_elbo"]
    draws = result.optimized_elbo - (oracle.log_marginal_likelihood(x) - oracle.diagonal_gap())
    assert abs(optimized.value - best) < max(5 * draws.std().item() / 20**0.5, 1e-3)
    assert (result.num_particles, result.num_steps, result.unit) == (400, 500, "nats")


def test_amortization_gap_of_an_amortized_optimum_is_none() -> None:
    oracle = LinearVAE.random(6, 3, orthogonal=True)
    vae = oracle.vae(diagonal=True)
    before = [p.clone() for p in vae.parameters()]
    result = amortization_gap(vae, oracle.draw(10), num_steps=200, progress=False)
    assert abs(result.gap.value) < 1e-4
    assert all(torch.equal(p, b) and p.grad is None for p, b in zip(vae.parameters(), before, strict=True))


def test_amortization_gap_frees_a_full_covariance_too() -> None:
    oracle = LinearVAE.random(6, 3)
    vae, x = oracle.vae(), oracle.draw(10)
    vae.get_buffer("guide.posterior.scale_tril").mul_(1.5)
    result = amortization_gap(vae, x, progress=False)
    assert (result.optimized_elbo - oracle.log_marginal_likelihood(x)).abs().max() < 1e-3
    truth = 3 * ((1.5**2 - 1) / 2 - torch.tensor(1.5).log().item())
    assert abs(result.gap.value - truth) < 5 * result.gap.standard_error


def test_amortization_gap_discrete_latents_are_refused() -> None:
    program = TwoStates(torch.zeros(2))
    with pytest.raises(ValueError, match="expected a reparameterized distribution with parameters at site 'z'"):
        amortization_gap(program, torch.ones(2, dtype=torch.float64), progress=False)


def test_amortization_gap_latents_that_depend_on_one_another_are_refused() -> None:
    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("z2", dist.Normal(z1, 1.0))

    with pytest.raises(ValueError, match="latents that do not depend on one another in the guide; got 'z2'"):
        amortization_gap(SimpleProgram(program, program), torch.zeros(3), progress=False)


@pytest.mark.parametrize("name", ["num_steps", "num_particles"])
def test_amortization_gap_numbers_below_one_are_refused(name: str) -> None:
    oracle = LinearVAE.random()
    options: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"amortization_gap: expected {name} at least 1; got 0"):
        amortization_gap(oracle.vae(), oracle.draw(2), **options, progress=False)
