"""The closed forms agree with numbers from quadrature, enumeration and simulation."""

import math

import pyro
import pytest
import torch
from oracles import FactorAnalysis, LinearVAE, NormalNormal, TwoStates
from pyro import poutine
from torch import Tensor

ONE = torch.ones(1, dtype=torch.float64)
ZERO = torch.zeros((), dtype=torch.float64)


def test_NormalNormal_agrees_with_quadrature() -> None:
    z = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    x, loc, scale = torch.tensor([1.3], dtype=torch.float64), 0.4 * ONE, 0.8 * ONE
    log_joint = torch.distributions.Normal(0.0, 1.0).log_prob(z) + torch.distributions.Normal(z, 1.0).log_prob(x)
    log_q = torch.distributions.Normal(loc, scale).log_prob(z)
    step = z[1] - z[0]
    assert NormalNormal.log_marginal_likelihood(x).item() == pytest.approx((log_joint.exp().sum() * step).log().item())
    assert NormalNormal.elbo(x, loc, scale).item() == pytest.approx(
        (log_q.exp() * (log_joint - log_q)).sum().item() * step.item()
    )
    assert NormalNormal.log_marginal_likelihood(ONE).item() == pytest.approx(-1.51551212, abs=1e-8)
    assert NormalNormal.elbo(ONE, 0 * ONE, ONE).item() == pytest.approx(NormalNormal.bound_of_prior[1], abs=1e-8)
    torch.testing.assert_close(
        NormalNormal.elbo(x, *NormalNormal.posterior(x)), NormalNormal.log_marginal_likelihood(x)
    )


def test_NormalNormal_gradients() -> None:
    x = torch.tensor([1.3], dtype=torch.float64)
    loc, log_scale = torch.tensor([0.4], requires_grad=True), torch.tensor([-0.3], requires_grad=True)
    gradients = torch.autograd.grad(NormalNormal.elbo(x, loc, log_scale.exp()).sum(), [loc, log_scale])
    assert [g.item() for g in gradients] == pytest.approx([1.3 - 0.8, 1 - 2 * math.exp(-0.6)], abs=1e-6)
    variances = NormalNormal.gradient_variances(x)
    assert variances["pathwise"].tolist() == [[2.0, 2.0]]
    assert variances["analytic_kl"][0].tolist() == pytest.approx([0.5, 0.71125])


@pytest.mark.parametrize(("alpha", "value"), [(0.5, -1.657737), (0.75, -1.765226), (-1.0, -1.360258)])
def test_NormalNormal_renyi(alpha: float, value: float) -> None:
    assert NormalNormal.renyi_of_prior(ONE, alpha).item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    ("partitions", "left", "right"),
    [(1, -1.918939, -1.293939), (2, -1.696716, -1.384216), (10, -1.547802, -1.485302)],
)
def test_NormalNormal_thermodynamic_integral(partitions: int, left: float, right: float) -> None:
    values = [value.item() for value in NormalNormal.tvo_of_prior(ONE, partitions)]
    assert values == pytest.approx([left, right], abs=1e-6)


def wake_phi(log_weights: Tensor, scores: Tensor) -> Tensor:
    return (log_weights.softmax(-1) * scores).sum(-1)


def reinforce(log_weights: Tensor, scores: Tensor) -> Tensor:
    log_mean = log_weights.logsumexp(-1, keepdim=True) - math.log(log_weights.shape[-1])
    return ((log_mean - log_weights.softmax(-1)) * scores).sum(-1)


@pytest.mark.parametrize(
    ("num_particles", "bound", "gradient", "wake", "variance"),
    [
        (1, -0.944576, 0.164195, 0.0, 0.945344),
        (2, -0.918087, 0.084927, 0.079268, 1.102674),
        (3, -0.909055, 0.056044, 0.106885, 1.252305),
        (5, -0.901928, 0.033027, 0.128404, 1.598428),
    ],
)
def test_TwoStates_agrees_with_enumeration(
    num_particles: int, bound: float, gradient: float, wake: float, variance: float
) -> None:
    logit = ZERO.clone().requires_grad_()
    value = TwoStates.bound(num_particles, logit)
    assert value.item() == pytest.approx(bound, abs=1e-6)
    assert torch.autograd.grad(value, logit)[0].item() == pytest.approx(gradient, abs=1e-6)
    assert TwoStates.moments(num_particles, ZERO, wake_phi)[0].item() == pytest.approx(wake, abs=1e-6)
    mean, spread = TwoStates.moments(num_particles, ZERO, reinforce)
    assert [mean.item(), spread.item()] == pytest.approx([gradient, variance], abs=1e-6)
    assert TwoStates.log_marginal_likelihood == pytest.approx(-0.89159812, abs=1e-8)
    assert TwoStates.posterior == pytest.approx(0.65853659, abs=1e-8)


@pytest.mark.usefixtures("global_store")
def test_TwoStates_draws_what_it_is_given() -> None:
    draws = torch.tensor([[1.0], [0.0], [1.0]], dtype=torch.float64)
    program = TwoStates(torch.zeros(2), draws)
    particles = pyro.plate("particles", 3, dim=-2)
    trace = poutine.trace(particles(program.guide)).get_trace(torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(trace.nodes["z"]["value"], draws.expand(3, 2), rtol=0, atol=0)


def test_LinearVAE_agrees_with_bayes_rule() -> None:
    oracle = LinearVAE.random()
    x, z = oracle.draw(6), torch.randn(6, 2, dtype=torch.float64)
    loc, covariance = oracle.posterior(x)
    log_joint = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1) + torch.distributions.Normal(
        z @ oracle.weight.T + oracle.bias, oracle.scale
    ).log_prob(x).sum(-1)
    posterior = torch.distributions.MultivariateNormal(loc, covariance)
    torch.testing.assert_close(log_joint - posterior.log_prob(z), oracle.log_marginal_likelihood(x))
    prior = torch.distributions.MultivariateNormal(torch.zeros_like(loc), torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(oracle.posterior_kl(x), torch.distributions.kl_divergence(posterior, prior))
    diagonal = torch.distributions.MultivariateNormal(loc, torch.diag(oracle.diagonal_scale() ** 2))
    gap = torch.distributions.kl_divergence(diagonal, posterior)
    torch.testing.assert_close(gap, torch.full_like(gap, oracle.diagonal_gap()))
    assert oracle.diagonal_gap() > 0.1


def test_LinearVAE_at_the_maximum_likelihood() -> None:
    x = LinearVAE.random().draw(40)
    turn = torch.tensor([[math.cos(0.6), -math.sin(0.6)], [math.sin(0.6), math.cos(0.6)]], dtype=torch.float64)
    best, turned = LinearVAE.maximum_likelihood(x, 2), LinearVAE.maximum_likelihood(x, 2, turn)
    for oracle in (best, turned):
        total = oracle.log_marginal_likelihood(x).sum().item()
        assert total == pytest.approx(LinearVAE.maximum_log_likelihood(x, 2), abs=1e-9)
        # The aggregate posterior of the training data has mean 0 and covariance I.
        loc, covariance = oracle.posterior(x)
        torch.testing.assert_close(loc.T @ loc / len(x) + covariance, torch.eye(2, dtype=torch.float64))
    assert best.diagonal_gap() == pytest.approx(0.0, abs=1e-12)
    assert turned.diagonal_gap() > 0.05
    moved = LinearVAE(best.weight * 1.01, best.bias, best.scale)
    assert moved.log_marginal_likelihood(x).sum() < LinearVAE.maximum_log_likelihood(x, 2)


def test_FactorAnalysis_agrees_with_bayes_rule() -> None:
    oracle = FactorAnalysis.random()
    x = oracle.draw(4)
    x[0, 1:3] = x[1, 0] = x[2] = math.nan
    z = torch.tensor([0.3, -0.8], dtype=torch.float64)
    loc, covariance = oracle.posterior(x)
    prior = torch.distributions.Normal(ZERO, 1.0).log_prob(z).sum()
    terms = torch.distributions.Normal(oracle.weight @ z + oracle.bias, oracle.scale).log_prob(torch.nan_to_num(x))
    posterior = torch.distributions.MultivariateNormal(loc, covariance).log_prob(z)
    log_evidence = prior + torch.where(x.isnan(), 0.0, terms).sum(1) - posterior
    torch.testing.assert_close(oracle.log_marginal_likelihood(x), log_evidence)
    missing, spread = oracle.conditional(x[0])
    weight = oracle.weight[1:3]
    torch.testing.assert_close(missing, weight @ loc[0] + oracle.bias[1:3])
    torch.testing.assert_close(spread, weight @ covariance[0] @ weight.T + oracle.scale[1:3].square().diag())
    vae = oracle.vae()
    assert vae.encode(x).mean.allclose(loc)
    torch.testing.assert_close(vae.decode(z[None]).log_prob(x[3:]), terms[3:].sum(1))
