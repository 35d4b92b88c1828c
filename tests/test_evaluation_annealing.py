"""Annealed importance sampling and its two-sided bounds against closed forms."""

import math
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearVAE, NormalNormal, SimpleProgram, TwoStates
from torch import Tensor, nn

from pyro_vae.evaluation import ais, simulate
from pyro_vae.evaluation.hmc import TemperedPosterior


def random_oracle(seed: int, data_dim: int = 20, latent_dim: int = 5) -> LinearVAE:
    return replace(LinearVAE.random(data_dim, latent_dim, seed=seed), scale=0.5 + 0.1 * seed)


@pytest.mark.slow
def test_ais_needs_no_guide() -> None:
    oracle = random_oracle(3)
    vae, x = oracle.vae(), oracle.draw(100)
    vae.get_buffer("guide.posterior.scale_tril").mul_(100)
    result = ais(vae, x, num_temperatures=400, progress=False)
    error = result.value - oracle.log_marginal_likelihood(x)
    assert error.mean().abs() < 0.05
    z_scores = error / result.standard_error
    assert z_scores.mean().abs() < 5 / math.sqrt(100)


def test_ais_of_one_datum_is_within_its_standard_error() -> None:
    x = torch.tensor([1.0, -3.0], dtype=torch.float64)
    result = ais(NormalNormal(x, x.exp()), x, num_particles=200, num_temperatures=20, progress=False)
    error = result.value - NormalNormal.log_marginal_likelihood(x)
    assert (error.abs() < 5 * result.standard_error).all()
    assert (result.standard_error < 0.05).all()
    assert (result.effective_sample_size > 100).all()
    assert str(result).splitlines()[1].startswith("log marginal likelihood")


def test_TemperedPosterior_transitions_leave_it_as_it_is() -> None:
    """The posterior at beta is Normal(beta x / (1 + beta), 1 / (1 + beta))."""
    x, beta = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), 0.4
    target = TemperedPosterior("test", NormalNormal(x, x.exp()).model, (x,), 20_000, "data")
    loc, scale = beta * x / (1 + beta), (1 + beta) ** -0.5
    z = {"z": loc + scale * torch.randn(20_000, 3, dtype=torch.float64)}
    for _ in range(5):  # a step so long that a fifth is refused
        z, _, probability = target.transition(beta, z, torch.full((3,), 1.4, dtype=torch.float64), 3)
    assert (probability.mean(0) < 0.9).all()
    assert ((z["z"].mean(0) - loc).abs() < 5 * scale / math.sqrt(20_000)).all()
    assert ((z["z"].var(0) * (1 + beta) - 1).abs() < 5 * math.sqrt(2 / 20_000)).all()


def test_TemperedPosterior_gradient_is_that_of_the_density() -> None:
    oracle = random_oracle(0, 4, 2)
    x = oracle.draw(3)
    target = TemperedPosterior("test", oracle.vae().model, (x,), 6, "data")
    z = target.draw()
    prior, likelihood, gradient = target(0.3, z)
    leaf = z["z"].clone().requires_grad_()
    expected_prior = dist.Normal(0.0, 1.0).log_prob(leaf).sum(-1)
    expected = dist.Normal(leaf @ oracle.weight.T + oracle.bias, oracle.scale).log_prob(x).sum(-1)
    (expected_gradient,) = torch.autograd.grad((expected_prior + 0.3 * expected).sum(), leaf)
    torch.testing.assert_close(prior, expected_prior.detach())
    torch.testing.assert_close(likelihood, expected.detach())
    torch.testing.assert_close(gradient, expected_gradient)


class _TwoLayers:
    """z2 ~ N(0, 1), z1|z2 ~ N(z2, 1), x|z1 ~ N(z1 + c, 1) with c in {0, 2} summed over: x ~ mixture of N(., 3)."""

    latents = ("z2", "z1")
    observed = ("x",)

    @staticmethod
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros_like(x), 1.0))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
            c = pyro.sample("c", dist.Bernoulli(x.new_tensor(0.3)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(z1 + 2 * c, 1.0), obs=x)

    guide = model

    @staticmethod
    def log_marginal_likelihood(x: Tensor) -> Tensor:
        parts = [dist.Normal(mean, math.sqrt(3)).log_prob(x) + math.log(p) for mean, p in ((0, 0.7), (2, 0.3))]
        return torch.stack(parts).logsumexp(0)


def test_ais_of_several_latents_and_one_that_is_summed_over() -> None:
    x = torch.tensor([-1.0, 2.0, 5.0], dtype=torch.float64)
    result = ais(_TwoLayers(), x, num_particles=300, num_temperatures=15, progress=False)
    assert ((result.value - _TwoLayers.log_marginal_likelihood(x)).abs() < 5 * result.standard_error).all()
    assert (result.standard_error < 0.1).all()


def test_TemperedPosterior_chains_start_from_draws_of_their_own_where_the_prior_is_summed_over() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(x.new_tensor(0.5)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(100 * c, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    z = TemperedPosterior("test", model, (torch.zeros(5),), 40, "data").draw()
    assert list(z) == ["z"]
    shares = (z["z"] > 50).float().mean(0)
    assert shares.shape == (5,)
    assert ((shares > 0.1) & (shares < 0.9)).all()  # one datum has others once in 3e5 seeds; equal chains have 0 or 1


def test_simulate_is_an_exact_draw_of_both() -> None:
    oracle = random_oracle(1, 4, 2)
    simulation = simulate(oracle.vae(), torch.zeros(20_000, 4, dtype=torch.float64))
    z, noise = simulation.latents["z"], simulation.x - oracle.bias - simulation.latents["z"] @ oracle.weight.T
    assert z.mean().abs() < 5 / math.sqrt(40_000)
    assert abs(noise.std() / oracle.scale - 1) < 5 / math.sqrt(2 * 80_000)
    assert simulation.args == (simulation.x,)


def test_simulate_replaces_every_argument_that_is_observed() -> None:
    def model(x: Tensor, y: Tensor, size: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("y", dist.Normal(z, size), obs=y)
            pyro.sample("x", dist.Normal(z, size), obs=x)

    x, y, size = torch.zeros(3), torch.zeros(3), torch.ones(3)
    simulation = simulate(SimpleProgram(model, model), x, y, size)
    assert (simulation.x != 0).all()
    assert (simulation.context[0] != 0).all()
    assert simulation.context[1] is size
    assert list(simulation.latents) == ["z"]


def test_simulate_takes_any_values_that_it_replaces() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Gamma(z.exp(), 1.0), obs=x)

    torch.manual_seed(1)
    simulation = simulate(SimpleProgram(model, model), torch.full((30,), -1.0))
    assert (simulation.x > 0).all()
    torch.manual_seed(1)
    assert torch.equal(simulation.latents["z"], torch.randn(30))  # no other draws were made before


def test_simulate_refuses_an_observed_value_that_is_no_argument() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x + 1)

    with pytest.raises(ValueError, match="expected the observed value of site 'x' to be an argument of the model"):
        simulate(SimpleProgram(model, model), torch.zeros(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_particles": 1}, "ais: expected num_particles at least 2; got 1"),
        ({"num_temperatures": 1}, "expected num_temperatures at least 2; got 1"),
        ({"num_leapfrog_steps": 0}, "expected num_leapfrog_steps at least 1; got 0"),
    ],
)
def test_ais_numbers_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ais(random_oracle(0).vae(), torch.zeros(2, 20, dtype=torch.float64), **options)


def test_ais_latents_that_are_no_real_vectors_are_refused() -> None:
    program = TwoStates(torch.zeros(2))
    with pytest.raises(ValueError, match=r"expected latents that are real vectors.*got support Boolean\(\)"):
        ais(program, torch.ones(2, dtype=torch.float64), progress=False)


def test_ais_densities_that_change_are_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(nn.functional.dropout(z), 1.0), obs=x)

    with pytest.raises(ValueError, match=r"expected densities that are functions of the latents.*out of the model\."):
        ais(SimpleProgram(model, model), torch.zeros(3), progress=False)
