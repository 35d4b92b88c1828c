"""IWELBO, MIWELBO, CIWELBO and PIWELBO: values, identities, order, and Pyro's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pyro
import pyro.infer
import pytest
import torch
from bounds import (
    BOUNDS,
    GivenNormalNormal,
    TwoLayers,
    assert_mean,
    exact_expectation,
    grid,
    row_gradients,
)
from oracles import LinearVAE, NormalNormal, TwoStates
from torch import Tensor

from pyro_vae.elbo import CIWELBO, ELBO, IWELBO, MIWELBO, PIWELBO, Estimator, RenyiELBO, ThermodynamicELBO, log_weights

pytestmark = pytest.mark.usefixtures("global_store")

X = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def prior_as_proposal(given: Tensor) -> GivenNormalNormal:
    """At x = 1 for every column of the noise (K, N)."""
    ones = torch.ones_like(given[0])
    return GivenNormalNormal(ones, 0 * ones, ones, given)


# Values


def expected_bound(estimator: Estimator, num_draws: int) -> float:
    """E[F] by quadrature over the noise."""
    given, probability = grid(num_draws)
    program = prior_as_proposal(given)
    values = estimator.bound(log_weights(program.model, program.guide, program.x, num_particles=num_draws))
    loss = estimator.loss(program.model, program.guide, program.x)
    assert loss == pytest.approx(-values.sum().item())
    return (probability @ values).item()


@pytest.mark.parametrize("num_particles", [1, 2])
def test_IWELBO_and_others_have_the_values_of_quadrature(num_particles: int) -> None:
    expected = NormalNormal.bound_of_prior[num_particles]
    assert expected_bound(IWELBO(num_particles), num_particles) == pytest.approx(expected, abs=1e-7)
    assert expected_bound(RenyiELBO(num_particles, alpha=0.0), num_particles) == pytest.approx(expected, abs=1e-7)


def test_MIWELBO_and_others_are_averages_of_bounds() -> None:
    loose, tight = NormalNormal.bound_of_prior[1], NormalNormal.bound_of_prior[2]
    assert expected_bound(MIWELBO(1, num_bounds=2), 2) == pytest.approx(loose, abs=1e-7)
    assert expected_bound(MIWELBO(2, num_bounds=1), 2) == pytest.approx(tight, abs=1e-7)
    assert expected_bound(CIWELBO(2, beta=0.3), 2) == pytest.approx(0.3 * loose + 0.7 * tight, abs=1e-7)


@pytest.mark.parametrize("num_particles", [5, 10, 50, 100])
def test_IWELBO_of_many_draws(num_particles: int) -> None:
    ones = torch.ones(20_000, dtype=torch.float64)
    program = NormalNormal(0 * ones, ones)
    estimator = IWELBO(num_particles)
    found = estimator.bound(log_weights(program.model, program.guide, ones, num_particles=num_particles))
    assert_mean(found, NormalNormal.bound_of_prior[num_particles])


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("num_particles", [2, 10])
def test_IWELBO_at_the_exact_posterior_every_draw_is_log_p(name: str, num_particles: int) -> None:
    oracle = LinearVAE.random()
    for program, x, truth in (
        (NormalNormal.exact(X), X, NormalNormal.log_marginal_likelihood(X)),
        (TwoLayers(X), X, TwoLayers(X).log_marginal_likelihood()),
        (oracle.vae(), oracle.draw(4), oracle.log_marginal_likelihood(oracle.draw(4))),
    ):
        estimator = BOUNDS["ELBO" if name == "ELBO, beta" else name](num_particles, "pathwise")
        loss = estimator.loss(program.model, program.guide, x)
        assert loss == pytest.approx(-truth.sum().item(), rel=1e-11)


def test_IWELBO_tightens_with_every_draw() -> None:
    """By enumeration; L_1 < L_2 < ... < log p(x), and K (log p - L_K) settles."""
    logit = torch.tensor(-0.3, dtype=torch.float64)
    bounds = [exact_expectation(IWELBO(k).bound, k, logit).item() for k in range(1, 11)]
    assert bounds == sorted(bounds)
    assert len(set(bounds)) == 10
    assert bounds[-1] < TwoStates.log_marginal_likelihood
    gaps = [k * (TwoStates.log_marginal_likelihood - bound) for k, bound in enumerate(bounds, 1)]
    assert gaps[-1] == pytest.approx(gaps[-2], rel=0.02)


def test_IWELBO_of_a_diagonal_guide_of_a_correlated_posterior() -> None:
    """The ELBO is short of log p(x) by the known gap, and importance weighting closes it, for a batch in one call."""
    oracle = LinearVAE.random()
    vae, x = oracle.vae(diagonal=True), oracle.draw(1).expand(20_000, -1)
    truth = oracle.log_marginal_likelihood(x[:1]).item()
    means = []
    for k in (1, 3, 10):
        found = IWELBO(k).bound(log_weights(vae.model, vae.guide, x, num_particles=k).detach())
        if k == 1:
            assert_mean(found, truth - oracle.diagonal_gap())
        means.append(found.mean().item())
    assert means == sorted(means)
    assert means[0] < means[-1] - 0.1
    assert means[-1] < truth


def test_IWELBO_models_gradient_is_that_of_the_evidence_at_the_exact_posterior() -> None:
    """E[grad log p(x, z)] under the posterior is grad log p(x); for a linear VAE in closed form."""
    oracle = LinearVAE.random()
    x = oracle.draw(3)
    weight, bias = oracle.weight.clone().requires_grad_(), oracle.bias.clone().requires_grad_()
    exact = torch.autograd.grad(LinearVAE(weight, bias, oracle.scale).log_marginal_likelihood(x).sum(), [weight, bias])
    vae = oracle.vae()
    layer = vae.likelihood.head.layer
    found = []
    estimator, parameters = IWELBO(100, "dreg"), list(layer.parameters())
    for _ in range(40):
        loss = estimator.differentiable_loss(vae.model, vae.guide, x)
        found.append(torch.cat([-g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    assert_mean(torch.stack(found), torch.cat([g.flatten() for g in exact]))


# Identities, draw by draw


def same(first: Estimator, second: Estimator, num_draws: int) -> None:
    """Value and gradients are equal on the same draws."""
    program = GivenNormalNormal(X, 0.3 * X, 0.8 + 0 * X, noise(num_draws, 3))
    losses = [e.differentiable_loss(program.model, program.guide, X) for e in (first, second)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-13)
    one, two = (row_gradients(e, program, X) for e in (first, second))
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("gradient", ["pathwise", "stl", "dreg", "score"])
def test_IWELBO_and_others_with_one_draw_are_the_elbo(gradient: Any) -> None:
    elbo = ELBO(1, gradient=gradient)
    same(IWELBO(1, gradient), elbo, 1)
    same(MIWELBO(1, gradient, num_bounds=1), elbo, 1)
    same(CIWELBO(1, gradient, beta=0.3), elbo, 1)
    same(RenyiELBO(1, gradient, alpha=0.5), elbo, 1)
    same(ThermodynamicELBO(1, partitions=3, gradient=gradient), elbo, 1)


@pytest.mark.parametrize("gradient", ["pathwise", "stl", "dreg"])
def test_MIWELBO_and_CIWELBO_that_are_the_elbo_of_several_draws(gradient: Any) -> None:
    elbo = ELBO(6, gradient=gradient)
    same(MIWELBO(1, gradient, num_bounds=6), elbo, 6)
    same(CIWELBO(6, gradient, beta=1.0), elbo, 6)
    same(ThermodynamicELBO(6, partitions=1, gradient=gradient), elbo, 6)


@pytest.mark.parametrize("gradient", ["pathwise", "stl", "dreg", "score", "vimco"])
def test_CIWELBO_and_others_that_are_importance_weighted(gradient: Any) -> None:
    tight = IWELBO(6, gradient)
    same(MIWELBO(6, gradient, num_bounds=1), tight, 6)
    same(CIWELBO(6, gradient, beta=0.0), tight, 6)
    same(RenyiELBO(6, gradient, alpha=0.0), tight, 6)


@pytest.mark.parametrize("name", [name for name in BOUNDS if name not in ("MIWELBO", "JackknifeELBO", "VRMax")])
def test_DReG_is_stl_with_one_draw(name: str) -> None:
    same(BOUNDS[name](1, "dreg"), BOUNDS[name](1, "stl"), 1)


def test_CIWELBO_combines_draw_by_draw() -> None:
    weights = 3 * noise(6, 4)
    combined = 0.3 * weights.mean(0) + 0.7 * IWELBO(6).bound(weights)
    torch.testing.assert_close(CIWELBO(6, beta=0.3).bound(weights), combined)
    groups = torch.stack([IWELBO(3).bound(weights[:3]), IWELBO(3).bound(weights[3:])])
    torch.testing.assert_close(MIWELBO(3, num_bounds=2).bound(weights), groups.mean(0))


@pytest.mark.parametrize("vectorize", [True, False])
def test_PIWELBO_gives_each_program_its_own_gradient(vectorize: bool) -> None:
    """The model's is that of IWELBO over all draws, the guide's that of MIWELBO; two layers."""
    given = noise(2, 6, 3)
    found = {}
    for name, estimator in (
        ("PIWELBO", PIWELBO(3, vectorize=vectorize, num_bounds=2)),
        ("IWELBO", IWELBO(6)),
        ("MIWELBO", MIWELBO(3, num_bounds=2)),
    ):
        program = TwoLayers(X, given, off=0.3)
        estimator.loss(program.model, program.guide, X)
        for layer in program.noise or ():
            layer.used = 0
        loss = estimator.differentiable_loss(program.model, program.guide, X)
        found[name] = loss.item(), program.gradients(-loss)
    assert found["PIWELBO"][0] == pytest.approx(found["IWELBO"][0], rel=1e-12)
    for parameter in ("prior", "slope", "log_noise"):
        torch.testing.assert_close(found["PIWELBO"][1][parameter], found["IWELBO"][1][parameter])
    for parameter in program.guide_parameters:
        torch.testing.assert_close(found["PIWELBO"][1][parameter], found["MIWELBO"][1][parameter])
        assert not torch.isclose(found["IWELBO"][1][parameter], found["MIWELBO"][1][parameter])
    # What both hold: the prior's part from IWELBO, the encoder's (that of c) from MIWELBO.
    torch.testing.assert_close(found["PIWELBO"][1]["shared"], found["IWELBO"][1]["prior"] + found["MIWELBO"][1]["c"])


# Pyro's own


@pytest.mark.parametrize("alpha", [0.0, 0.5, -1.0])
def test_IWELBO_loss_and_gradient_are_those_of_stock_pyro(alpha: float) -> None:
    def result(loss: Any) -> tuple[float, Tensor, Tensor]:
        program = NormalNormal(0.3 * X, 0.8 + 0 * X)
        torch.manual_seed(3)
        value = loss.loss_and_grads(program.model, program.guide, X)
        return value, program.guide.loc.grad, program.guide.log_scale.grad

    stock = pyro.infer.RenyiELBO(alpha, num_particles=7, max_plate_nesting=1, vectorize_particles=True)
    estimators = [RenyiELBO(7, alpha=alpha)] + ([IWELBO(7)] if alpha == 0 else [])
    theirs = result(stock)
    for estimator in estimators:
        ours = result(estimator)
        assert ours[0] == pytest.approx(theirs[0], rel=1e-12)
        torch.testing.assert_close(ours[1:], theirs[1:])


# What is refused


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "no bound": (
        lambda: MIWELBO(5, num_bounds=0),
        "MIWELBO: expected num_bounds at least 1; got 0. Give a larger number.",
    ),
    "no draw per bound": (
        lambda: PIWELBO(0, num_bounds=5),
        "PIWELBO: expected num_particles at least 1; got 0. Give a larger number.",
    ),
    "no mixture": (
        lambda: CIWELBO(5, beta=1.5),
        "CIWELBO: expected beta at least 0 and at most 1; got 1.5. Give such a number.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_IWELBO_and_others_refuse_bad_arguments(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()
