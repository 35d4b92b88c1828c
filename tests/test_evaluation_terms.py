"""The terms of the ELBO are those of closed forms, per datum, and looking at them changes nothing."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearVAE, NormalNormal, SimpleProgram, TwoStates
from pyro import poutine
from torch import Tensor

from pyro_vae import VAE, conditionals, evaluation, likelihoods, nets, priors
from pyro_vae.evaluation import elbo_terms
from pyro_vae.graphs.memory import peak_memory


@pytest.mark.parametrize("num_particles", [1, 7])
@pytest.mark.parametrize("diagonal", [False, True])
def test_elbo_terms_exact_posterior_gives_log_p_for_every_datum_and_draw(num_particles: int, diagonal: bool) -> None:
    oracle = LinearVAE.random(orthogonal=diagonal)
    vae, x = oracle.vae(diagonal=diagonal), oracle.draw(6)
    draws = [elbo_terms(vae, x, num_particles=num_particles) for _ in range(3)]
    for terms in draws:
        torch.testing.assert_close(terms.elbo, oracle.log_marginal_likelihood(x), atol=1e-9, rtol=0)
        torch.testing.assert_close(terms.elbo, terms.expected_log_likelihood - terms.kl)
        assert list(terms.kl_by_site) == ["z"]
        assert torch.equal(terms.kl, terms.kl_by_site["z"])
        assert (terms.num_particles, terms.analytic_kl) == (num_particles, False)
        assert not terms.elbo.requires_grad
    assert not torch.equal(draws[0].kl, draws[1].kl)


@pytest.mark.parametrize("num_particles", [1, 7])
def test_elbo_terms_analytic_kl_is_the_closed_form(num_particles: int) -> None:
    oracle = LinearVAE.random(orthogonal=True)
    vae, x = oracle.vae(diagonal=True), oracle.draw(6)
    terms = elbo_terms(vae, x, num_particles=num_particles, analytic_kl=True)
    torch.testing.assert_close(terms.kl, oracle.posterior_kl(x))
    torch.testing.assert_close(terms.elbo, terms.expected_log_likelihood - terms.kl)
    assert terms.analytic_kl


@pytest.mark.parametrize("analytic_kl", [False, True])
def test_elbo_terms_gap_of_a_diagonal_guide(analytic_kl: bool) -> None:
    oracle = LinearVAE.random()
    vae, x = oracle.vae(diagonal=True), oracle.draw(4)
    draws = torch.stack([elbo_terms(vae, x, num_particles=50, analytic_kl=analytic_kl).elbo for _ in range(40)])
    gap = oracle.log_marginal_likelihood(x) - draws.mean(0)
    assert ((gap - oracle.diagonal_gap()).abs() < 5 * draws.std(0) / 40**0.5).all()


@pytest.mark.parametrize("num_particles", [1, 3])
def test_elbo_terms_batch_is_its_data_one_by_one(num_particles: int) -> None:
    oracle = LinearVAE.random(orthogonal=True)
    vae, x = oracle.vae(diagonal=True), oracle.draw(4)
    together = elbo_terms(vae, x, num_particles=num_particles, analytic_kl=True)
    alone = [elbo_terms(vae, row[None], num_particles=num_particles, analytic_kl=True) for row in x]
    torch.testing.assert_close(together.kl, torch.cat([terms.kl for terms in alone]))
    assert together.expected_log_likelihood.shape == (4,)
    exact = elbo_terms(vae, x, num_particles=num_particles).elbo
    torch.testing.assert_close(
        exact, torch.cat([elbo_terms(vae, row[None], num_particles=num_particles).elbo for row in x])
    )


def test_elbo_terms_discrete_latents_have_terms() -> None:
    n = 3000
    program, x = TwoStates(torch.zeros(n)), torch.ones(n, dtype=torch.float64)
    terms = elbo_terms(program, x, num_particles=2)
    standard_error = terms.elbo.std() / n**0.5
    assert abs(terms.elbo.mean() - TwoStates.bound(1, torch.zeros(()).double())) < 5 * standard_error
    kl = 0.5 * math.log(0.5 / 0.3) + 0.5 * math.log(0.5 / 0.7)
    analytic = elbo_terms(program, x, analytic_kl=True)
    torch.testing.assert_close(analytic.kl, torch.full((n,), kl, dtype=torch.float64), atol=1e-6, rtol=0)


def layered() -> tuple[SimpleProgram, Tensor]:
    """A global plate name, a plate within it, two layers, a mask, and a subsample of 3 of 10 data."""
    x = torch.tensor([[0.3, 0.1], [-1.0, 2.0], [2.0, 0.5]], dtype=torch.float64)
    mask: Any = torch.tensor([[True], [False], [True]])

    def model(x: Tensor) -> None:
        with pyro.plate("rows", 10, subsample_size=3, dim=-2), poutine.mask(mask=mask):
            top = pyro.sample("top", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            with pyro.plate("columns", 2, dim=-1):
                z = pyro.sample("z", dist.Normal(top, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", 10, subsample_size=3, dim=-2), poutine.mask(mask=mask):
            top = pyro.sample("top", dist.Normal(x.sum(-1, keepdim=True) / 4, 0.5**0.5))
            with pyro.plate("columns", 2, dim=-1):
                pyro.sample("z", dist.Normal((x + top) / 2, 0.5**0.5))

    return SimpleProgram(model, guide, latents=("top", "z")), x


@pytest.mark.parametrize("num_particles", [1, 5])
def test_elbo_terms_inner_plates_are_summed_masks_apply_and_scales_do_not(num_particles: int) -> None:
    program, x = layered()
    # With z summed out, x_i ~ Normal(top, 2), so that the guide above is the exact posterior.
    pair = torch.distributions.MultivariateNormal(torch.zeros(2).double(), torch.tensor([[3.0, 1], [1, 3]]).double())
    seen = torch.tensor([1.0, 0.0, 1.0])
    terms = elbo_terms(program, x, num_particles=num_particles, plate="rows")
    torch.testing.assert_close(terms.elbo, pair.log_prob(x) * seen)
    torch.testing.assert_close(terms.kl, terms.kl_by_site["top"] + terms.kl_by_site["z"])
    assert list(terms.kl_by_site) == ["top", "z"]
    analytic = elbo_terms(program, x, num_particles=num_particles, plate="rows", analytic_kl=True)
    # KL(Normal(m, 1/2) || Normal(0, 1)) with m = (x1 + x2) / 4.
    top = ((x.sum(-1) / 4) ** 2 + 0.5 - 1 - math.log(0.5)) / 2
    torch.testing.assert_close(analytic.kl_by_site["top"], top * seen)
    assert analytic.kl_by_site["z"].shape == (3,)


def test_elbo_terms_context_is_passed_on() -> None:
    vae = VAE(
        priors.StandardNormal(2),
        likelihoods.Normal(nets.MLP(2, [4], context_shapes=[3]), 5, scale=1.0),
        conditionals.DiagonalNormal(nets.MLP(5, [4]), 2),
    )
    x, context = torch.randn(4, 5), torch.randn(4, 3)
    values = []
    for moved in (context, context + 1):
        torch.manual_seed(1)
        values.append(elbo_terms(vae, x, moved, num_particles=2))
    assert torch.equal(values[0].kl, values[1].kl)
    assert (values[0].expected_log_likelihood != values[1].expected_log_likelihood).all()
    torch.manual_seed(1)
    z = vae.encode(x).sample(torch.Size([2]))
    torch.testing.assert_close(values[0].expected_log_likelihood, vae.decode(z, context).log_prob(x).mean(0))


# Nothing is changed


@pytest.mark.parametrize("functions", [False, True])
def test_elbo_terms_param_store_is_left_as_it_was(functions: bool) -> None:
    x = torch.ones(3, dtype=torch.float64)
    program = NormalNormal(torch.zeros(3), torch.ones(3), functions=functions)
    elbo_terms(program, x, num_particles=2)
    assert len(pyro.get_param_store()) == 0


@pytest.mark.usefixtures("global_store")
def test_elbo_terms_parameters_of_the_global_store_are_seen() -> None:
    x = torch.ones(3, dtype=torch.float64)
    program = NormalNormal(torch.zeros(3), torch.ones(3), functions=True)
    loc, scale = NormalNormal.posterior(x)
    pyro.param("loc", loc)
    pyro.param("log_scale", scale.log())
    own = dict(pyro.get_param_store().named_parameters())
    torch.testing.assert_close(elbo_terms(program, x).elbo, NormalNormal.log_marginal_likelihood(x))
    assert {name: id(p) for name, p in pyro.get_param_store().named_parameters()} == {n: id(p) for n, p in own.items()}


def test_elbo_terms_generator_moves_by_the_draws_alone() -> None:
    program, x = NormalNormal(torch.zeros(3), torch.ones(3)), torch.ones(3, dtype=torch.float64)
    torch.manual_seed(1)
    elbo_terms(program, x, num_particles=2)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    torch.randn(2, 3, dtype=torch.float64)
    assert torch.equal(torch.get_rng_state(), state)


# Refused


def outside() -> SimpleProgram:
    def model(x: Tensor) -> None:
        shared = pyro.sample("shared", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(shared, 1.0), obs=x)

    return SimpleProgram(model, lambda x: pyro.sample("shared", dist.Normal(0.0, 1.0)), latents=("shared",))


def mixture() -> VAE:
    return VAE(
        priors.MixtureOfNormals(2, num_components=3),
        likelihoods.Normal(nets.MLP(2, []), 5),
        conditionals.DiagonalNormal(nets.MLP(5, []), 2),
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: elbo_terms(NormalNormal(torch.zeros(3), torch.ones(3)), torch.ones(3), num_particles=0),
            r"elbo_terms: expected num_particles at least 1; got 0\. Give a larger number\.",
        ),
        (
            lambda: elbo_terms(NormalNormal(torch.zeros(3), torch.ones(3)), torch.ones(3), plate="rows"),
            r"expected to be inside the plate 'rows'",
        ),
        (lambda: elbo_terms(outside(), torch.ones(3)), r"Site 'shared': expected to be inside the plate 'data'"),
        (
            lambda: elbo_terms(mixture(), torch.zeros(3, 5), analytic_kl=True),
            r"Analytic KL: expected a closed form at site 'z'; got Normal against Mixture\w+\. Use analytic_kl=False\.",
        ),
    ],
)
def test_elbo_terms_what_has_no_terms_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
    assert len(pyro.get_param_store()) == 0


ORACLE = LinearVAE.random(6, 3, orthogonal=True)
EXACT = ORACLE.vae(diagonal=True)  # whose guide is the posterior
DATA = ORACLE.draw(120)
with torch.random.fork_rng():
    torch.manual_seed(3)
    SIMULATION = evaluation.simulate(EXACT, torch.zeros(300, 6, dtype=torch.float64))


def _ais(memory: int | None) -> Tensor:
    options: dict[str, Any] = {"start": "guide", "num_particles": 4, "num_temperatures": 2}
    result = evaluation.ais(EXACT, DATA, memory=memory, progress=False, **options)
    assert torch.allclose(result.value, ORACLE.log_marginal_likelihood(DATA))
    return result.value


def _amortization_gap(memory: int | None) -> Tensor:
    options: dict[str, Any] = {"num_steps": 3, "learning_rate": 1e-6, "num_particles": 5}
    result = evaluation.amortization_gap(EXACT, DATA, memory=memory, progress=False, **options)
    assert torch.allclose(result.elbo, ORACLE.log_marginal_likelihood(DATA))
    assert torch.allclose(result.optimized_elbo, result.elbo, atol=1e-4)
    return result.elbo


def _calibration(memory: int | None) -> Tensor:
    result = evaluation.calibration(EXACT, SIMULATION, memory=memory)
    assert result.p_value > 0.001  # ranks among another datum's draws would not be uniform
    return result.ranks["z"]


def _rate_distortion(memory: int | None) -> Tensor:
    result = evaluation.rate_distortion(EXACT, DATA, num_particles=3, analytic_kl=True, memory=memory)
    assert result.elbo.value == pytest.approx(ORACLE.log_marginal_likelihood(DATA).mean().item(), abs=0.3)
    assert result.rate.value == pytest.approx(ORACLE.posterior_kl(DATA).mean().item(), rel=1e-6)
    assert result.rate.num_data == len(DATA)
    return torch.tensor([result.rate.value])


@pytest.mark.parametrize("figure", [_ais, _amortization_gap, _calibration, _rate_distortion])
def test_memory_of_figures_stays_within_the_budget_which_leaves_them_as_they_are(
    figure: Callable[[int | None], Tensor],
) -> None:
    memory, seen = 2**16, []
    peak = peak_memory(lambda: seen.append(figure(memory)))
    at_once = peak_memory(lambda: seen.append(figure(2**30)))
    kept = 2**15 if figure is _calibration else 2**14  # ranks and figures of all data, and what checks them
    assert memory / 2 < peak <= memory + kept
    assert at_once > 1.5 * peak
    assert seen[0].shape == seen[1].shape
    with pytest.raises(ValueError, match=r"expected memory for one datum at a time, [\d,]+ bytes; got 100\."):
        figure(100)


def test_in_parts_leaves_parameters_that_belong_to_the_data_together() -> None:
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    program = NormalNormal.exact(x)
    result = evaluation.rate_distortion(program, x)
    assert result.elbo.value == pytest.approx(NormalNormal.log_marginal_likelihood(x).mean().item())
    with pytest.raises(ValueError, match=r"Shape mismatch.*\)\. Leave memory out where parameters belong to the data"):
        evaluation.rate_distortion(program, x, memory=10**6)
