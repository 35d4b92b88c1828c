"""ELBO surgery and the rate-distortion curve against the closed forms of a linear VAE."""

import itertools
import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearVAE, SimpleProgram
from torch import Tensor

from pyro_vae import VAE, ConditionalVAE, conditionals, likelihoods, nets, priors
from pyro_vae.evaluation import (
    RateDistortionCurve,
    elbo_surgery,
    elbo_terms,
    rate_distortion,
    rate_distortion_curve,
    reconstruction_error,
)

ORACLE = LinearVAE.random(6, 3, orthogonal=True)
EIGENVALUES = ORACLE.weight.square().sum(0) + ORACLE.scale**2


@pytest.mark.slow
def test_elbo_surgery_mutual_information_and_marginal_kl_are_those_of_the_closed_form() -> None:
    """The posterior is diagonal, and the aggregate posterior of the model's data is the prior."""
    surgery = elbo_surgery(ORACLE.vae(diagonal=True), ORACLE.draw(2000))
    truth = ((EIGENVALUES / ORACLE.scale**2).log() / 2).sum().item()
    lower, upper = surgery.mutual_information, surgery.mutual_information_bound
    assert lower.value - 5 * lower.standard_error < truth < upper.value + 5 * upper.standard_error
    assert upper.value - lower.value < 0.1
    assert abs(lower.value - truth) < 5 * lower.standard_error
    assert abs(surgery.rate.value - truth) < 5 * surgery.rate.standard_error
    # Of 2,000 data the aggregate is a mixture, a little more than its limit away from the prior.
    assert 0 < surgery.marginal_kl.value < 0.06


def test_elbo_surgery_parts_add_up() -> None:
    vae, x = ORACLE.vae(diagonal=True), ORACLE.draw(50)
    surgery = elbo_surgery(vae, x, num_particles=3, memory=2**15)
    assert surgery.rate.value == pytest.approx(surgery.mutual_information.value + surgery.marginal_kl.value)
    assert surgery.elbo.value == pytest.approx(surgery.expected_log_likelihood.value - surgery.rate.value)
    assert surgery.elbo.value == pytest.approx(ORACLE.log_marginal_likelihood(x).mean().item())  # no noise: exact guide
    assert (surgery.rate.num_data, surgery.rate.num_particles, surgery.rate.unit) == (50, 3, "nats")


def test_elbo_surgery_mutual_information_with_an_index_is_at_most_the_logarithm_of_its_size() -> None:
    oracle = LinearVAE(10 * ORACLE.weight, ORACLE.bias, 0.01)
    surgery = elbo_surgery(oracle.vae(diagonal=True), oracle.draw(20))
    assert surgery.mutual_information.value == pytest.approx(math.log(20))
    assert surgery.mutual_information_bound.value > 10


def test_elbo_surgery_collapsed_posterior_tells_nothing() -> None:
    oracle = LinearVAE(torch.zeros(4, 2, dtype=torch.float64), torch.zeros(4, dtype=torch.float64), 1.0)
    surgery = elbo_surgery(oracle.vae(diagonal=True), oracle.draw(30))
    for part in (surgery.rate, surgery.mutual_information, surgery.marginal_kl, surgery.mutual_information_bound):
        assert part.value == pytest.approx(0, abs=1e-12)


def test_elbo_surgery_several_latents_that_depend_on_one_another() -> None:
    """z1 ~ q(z1|x), z2 ~ q(z2|z1): what z2 adds to z1 is the same for every datum, so the information is z1's."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(x, 0.7))
            pyro.sample("z2", dist.Normal(2 * z1, 1.0))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros_like(x), 2.0))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
            pyro.sample("x", dist.Normal(z1, 1.0), obs=x)

    x = torch.randn(2000, dtype=torch.float64)
    information = elbo_surgery(SimpleProgram(model, guide), x).mutual_information
    truth = math.log(1 + 1 / 0.7**2) / 2
    assert abs(information.value - truth) < 5 * information.standard_error


def conditional(prior: priors.Prior | conditionals.Conditional) -> ConditionalVAE:
    return ConditionalVAE(
        prior=prior,
        likelihood=likelihoods.Normal(nets.MLP(2, [4], context_shapes=[3]), 5, scale=1.0),
        posterior=conditionals.DiagonalNormal(nets.MLP(5, [4], context_shapes=[3]), 2),
    )


def test_elbo_surgery_context_that_the_prior_sees_leaves_no_marginal_kl() -> None:
    x, context = torch.randn(8, 5), torch.randn(8, 3)
    surgery = elbo_surgery(conditional(priors.StandardNormal(2)), x, context, num_particles=2)
    assert surgery.rate.value == pytest.approx(surgery.mutual_information.value + surgery.marginal_kl.value, abs=1e-5)
    vae = conditional(conditionals.DiagonalNormal(nets.MLP(3, [4]), 2))
    with pytest.raises(ValueError, match=r"expected a prior that is the same for all data; got one that depends on"):
        elbo_surgery(vae, x, context)


def test_elbo_surgery_comparison_keeps_to_its_budget_and_does_not_depend_on_it() -> None:
    vae, x = ORACLE.vae(diagonal=True), ORACLE.draw(50)
    surgeries = []
    for memory in (2**15, 2**22):
        torch.manual_seed(1)
        surgeries.append(elbo_surgery(vae, x, num_particles=4, memory=memory))
    assert surgeries[0].mutual_information.value == pytest.approx(surgeries[1].mutual_information.value, abs=1e-12)
    with pytest.raises(ValueError, match=r"expected memory to compare one draw with all data, [\d,]+ bytes; got 1,000"):
        elbo_surgery(vae, x, memory=1000)


@pytest.mark.parametrize(("num_data", "num_particles"), [(1, 1), (3, 0)])
def test_elbo_surgery_too_few_are_refused(num_data: int, num_particles: int) -> None:
    with pytest.raises(ValueError, match=f"expected at least 2 data and 1 particle; got {num_data} and"):
        elbo_surgery(ORACLE.vae(diagonal=True), ORACLE.draw(num_data), num_particles=num_particles)


def tempered(beta: float) -> tuple[VAE, Tensor, Tensor]:
    """The decoder with the guide that is best for the weight beta, q ~ p(z) p(x|z)^(1/beta); its to_loc and scale."""
    vae = ORACLE.vae(diagonal=True)
    variance = 1 / (1 + ORACLE.weight.square().sum(0) / (beta * ORACLE.scale**2))
    to_loc = variance[:, None] * ORACLE.weight.T / (beta * ORACLE.scale**2)
    layer = vae.posterior.head.get_submodule("layer")
    with torch.no_grad():
        layer.get_parameter("weight")[:3] = to_loc
        layer.get_parameter("bias")[:] = torch.cat([-to_loc @ ORACLE.bias, variance.log() / 2])
    return vae, to_loc, variance


BETAS = (4.0, 0.25, 1.0)


@pytest.fixture(scope="module")
def curve() -> RateDistortionCurve:
    torch.manual_seed(0)
    x = ORACLE.draw(1000)
    return rate_distortion_curve({b: tempered(b)[0] for b in BETAS}, x, num_particles=20, analytic_kl=True)


@pytest.mark.parametrize("beta", BETAS)
def test_rate_distortion_is_that_of_the_closed_form(curve: RateDistortionCurve, beta: float) -> None:
    _, to_loc, variance = tempered(beta)
    x = ORACLE.draw(1000)
    loc = (x - ORACLE.bias) @ to_loc.T
    rate = (loc.square() + variance - 1 - variance.log()).sum(-1).mean() / 2
    residual = (x - ORACLE.bias - loc @ ORACLE.weight.T).square().sum(-1) + (ORACLE.weight.square() @ variance).sum()
    distortion = (residual / ORACLE.scale**2 + 6 * math.log(2 * math.pi * ORACLE.scale**2)).mean() / 2
    point = curve.points[beta]
    assert point.rate.value == pytest.approx(rate.item())
    # 20,000 draws: the noise of the distortion is below a hundredth of that of the data.
    assert abs(point.distortion.value - distortion.item()) < 5 * point.distortion.standard_error / 4
    assert point.elbo.value == pytest.approx(-point.rate.value - point.distortion.value)
    assert point.analytic_kl
    assert list(point.rate_by_site) == ["z"]


def test_rate_distortion_curve_slope_is_minus_beta(curve: RateDistortionCurve) -> None:
    assert list(curve.points) == sorted(BETAS)
    points = list(curve.points.items())
    for (low, one), (high, other) in itertools.pairwise(points):
        slope = (other.distortion.value - one.distortion.value) / (other.rate.value - one.rate.value)
        assert low < -slope < high


def test_rate_distortion_curve_as_a_table_and_as_json(curve: RateDistortionCurve) -> None:
    sizes = ["data", "particles"]
    lines = str(curve).splitlines()
    assert lines[0].split() == ["beta", "rate", "±", "s.e.", "distortion", "±", "s.e.", "elbo", "±", "s.e.", *sizes]
    assert [line.split()[0] for line in lines[1:4]] == ["0.25", "1", "4"]
    assert json.loads(curve.to_json())["rate, beta=0.25"]["value"] == curve.points[0.25].rate.value


def test_reconstruction_error_is_that_of_the_likelihood() -> None:
    vae, x = ORACLE.vae(diagonal=True), ORACLE.draw(30)
    torch.manual_seed(1)
    error = reconstruction_error(vae, x, num_particles=4)
    torch.manual_seed(1)
    terms = elbo_terms(vae, x, num_particles=4)
    assert error.value == pytest.approx(-terms.expected_log_likelihood.mean().item())
    assert (error.unit, error.num_data, error.num_particles) == ("nats", 30, 4)


def test_rate_distortion_refuses_no_particles() -> None:
    with pytest.raises(ValueError, match="rate_distortion: expected num_particles at least 1; got 0"):
        rate_distortion(ORACLE.vae(), ORACLE.draw(2), num_particles=0)
