"""The thermodynamic objective: its sums, their order, and its two gradients, against exact integrals."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import pytest
import torch
from bounds import GivenNormalNormal, exact_expectation, grid, quantiles, row_gradients
from oracles import GivenBernoulli, NormalNormal, TwoStates
from torch import Tensor

from pyro_vae.elbo import Covariance, ThermodynamicELBO, log_weights

pytestmark = pytest.mark.usefixtures("global_store")

ONE = torch.ones(1, dtype=torch.float64)
LOG_P = -1.51551212
Sum = Literal["left", "right"]


def equal_partitions(num_partitions: int) -> list[float]:
    return [t / num_partitions for t in range(1, num_partitions)]


# Values


@pytest.mark.parametrize(
    ("num_partitions", "left", "right"),
    [(1, -1.918939, -1.293939), (2, -1.696716, -1.384216), (10, -1.547802, -1.485302)],
)
def test_ThermodynamicELBO_sums_of_many_draws(num_partitions: int, left: float, right: float) -> None:
    program = GivenNormalNormal(ONE, 0 * ONE, ONE, quantiles(500_000))
    weights = log_weights(program.model, program.guide, ONE, num_particles=500_000)
    exact = [value.item() for value in NormalNormal.tvo_of_prior(ONE, num_partitions)]
    assert exact == pytest.approx([left, right], abs=1e-6)
    sums: tuple[Sum, Sum] = ("left", "right")
    found = [
        ThermodynamicELBO(2, partitions=equal_partitions(num_partitions), sum=side).bound(weights).item()
        for side in sums
    ]
    assert found == pytest.approx([left, right], abs=1e-5)
    assert found[0] < LOG_P < found[1]
    assert found[1] - found[0] == pytest.approx(0.625 / num_partitions, abs=2e-5)


def test_ThermodynamicELBO_sandwich_does_not_hold_at_few_draws() -> None:
    """Self-normalized, the right sum lies below log p(x); with one draw it is the ELBO, as any sum."""
    values = {}
    for num_particles in (1, 2):
        noise, probability = grid(num_particles)
        ones = torch.ones_like(probability)
        program = GivenNormalNormal(ones, 0 * ones, ones, noise)
        weights = log_weights(program.model, program.guide, ones, num_particles=num_particles)
        right = ThermodynamicELBO(2, partitions=equal_partitions(10), sum="right")
        values[num_particles] = (probability @ right.bound(weights)).item()
    assert values[1] == pytest.approx(NormalNormal.bound_of_prior[1], abs=1e-7)
    assert values[1] < values[2] < LOG_P


def test_ThermodynamicELBO_left_sums_bound_the_evidence_at_any_number_of_draws() -> None:
    logit = torch.tensor(-0.4, dtype=torch.float64)
    lefts = [exact_expectation(ThermodynamicELBO(k, partitions=3).bound, k, logit).item() for k in (1, 2, 4, 8)]
    assert lefts == sorted(lefts)
    assert lefts[-1] < TwoStates.log_marginal_likelihood
    one = exact_expectation(ThermodynamicELBO(4, partitions=1).bound, 4, logit)
    torch.testing.assert_close(one, TwoStates.bound(1, logit))  # one partition is the ELBO


def test_ThermodynamicELBO_partitions_by_number_are_uniform_in_the_logarithm() -> None:
    assert ThermodynamicELBO(2, partitions=1).points == [0.0, 1.0]
    assert ThermodynamicELBO(2, partitions=2, first=0.3).points == [0.0, 0.3, 1.0]
    points = ThermodynamicELBO(2, partitions=5, first=0.01).points
    assert points[:2] == [0.0, pytest.approx(0.01)]
    assert points[-1] == 1.0
    assert len(points) == 6
    ratios = [high / low for low, high in itertools.pairwise(points[1:])]
    assert ratios == pytest.approx([100 ** (1 / 4)] * 4)
    assert ThermodynamicELBO(2, partitions=[0.2, 0.7]).points == [0.0, 0.2, 0.7, 1.0]


# Gradients


def exact_sum(loc: Tensor, log_scale: Tensor, points: list[float], side: Sum) -> Tensor:
    """Sum of widths times E[log w] under the Normal that is proportional to q^(1-beta) p(x, z)^beta, at x = 1."""
    total = torch.zeros((), dtype=torch.float64)
    variance = (2 * log_scale).exp()
    for low, high in itertools.pairwise(points):
        beta = low if side == "left" else high
        precision = (1 - beta) / variance + 2 * beta
        mean, spread = ((1 - beta) * loc / variance + beta) / precision, 1 / precision
        log_joint = -math.log(2 * math.pi) - (mean**2 + (1 - mean) ** 2) / 2 - spread
        log_q = -(math.log(2 * math.pi) + ((mean - loc) ** 2 + spread) / variance) / 2 - log_scale
        total = total + (high - low) * (log_joint - log_q)
    return total


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("gradient", ["pathwise", "covariance"])
def test_ThermodynamicELBO_gradients_of_many_draws(gradient: Any, side: Sum) -> None:
    parameters = torch.tensor([0.9, math.log(0.8)], dtype=torch.float64, requires_grad=True)
    points = [0.0, 0.2, 0.7, 1.0]
    exact = torch.autograd.grad(exact_sum(parameters[0], parameters[1], points, side), parameters)[0]
    program = GivenNormalNormal(ONE, 0.9 * ONE, 0.8 * ONE, quantiles(500_000))
    estimator = ThermodynamicELBO(500_000, partitions=[0.2, 0.7], sum=side, gradient=gradient)
    found = row_gradients(estimator, program, ONE)[0]
    assert found.tolist() == pytest.approx(exact.tolist(), abs=3e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("ones", [1, 2])
def test_Covariance_gradient_of_discrete_draws(ones: int, side: Sum) -> None:
    """Of model and guide. With q(z=1) = 1/4 or 2/4, four draws of which as many are 1 are the whole distribution."""
    draws = torch.tensor([1.0] * ones + [0.0] * (4 - ones), dtype=torch.float64).unsqueeze(-1)
    theta = torch.tensor(-0.6, dtype=torch.float64, requires_grad=True)
    logit = torch.tensor(math.log(ones / (4 - ones)), dtype=torch.float64, requires_grad=True)

    def model(x: Tensor) -> None:
        with pyro.plate("data", 1):
            z = pyro.sample("z", dist.Bernoulli(logits=theta))
            pyro.sample("x", dist.Bernoulli(torch.where(z > 0, x.new_tensor(0.9), x.new_tensor(0.2))), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 1):
            pyro.sample("z", GivenBernoulli(logit.expand(draws.shape), draws))

    z = torch.tensor([0.0, 1.0], dtype=torch.float64)
    log_joint = (
        torch.nn.functional.logsigmoid((2 * z - 1) * theta) + torch.tensor([0.2, 0.9], dtype=torch.float64).log()
    )
    log_q = TwoStates.log_q(z, logit)
    points, exact = [0.0, 0.2, 0.7, 1.0], torch.zeros(())
    for low, high in itertools.pairwise(points):
        beta = low if side == "left" else high
        path = ((1 - beta) * log_q + beta * log_joint).softmax(0)
        exact = exact + (high - low) * (path * (log_joint - log_q)).sum()

    estimator = ThermodynamicELBO(4, partitions=[0.2, 0.7], sum=side, gradient=Covariance())
    loss = estimator.differentiable_loss(model, guide, ONE)
    assert -loss.item() == pytest.approx(exact.item(), rel=1e-12)
    found = torch.autograd.grad(-loss, [theta, logit])
    expected = torch.autograd.grad(exact, [theta, logit])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"partitions": 0},
            "ThermodynamicELBO: expected partitions at least 1; got 0. Give a larger number.",
        ),
        (
            {"first": 1.0},
            "ThermodynamicELBO: expected first above 0 and below 1; got 1. Give such a number.",
        ),
        (
            {"partitions": [0.5, 0.2]},
            "ThermodynamicELBO: expected points that rise within (0, 1); got [0.5, 0.2]. Sort them, without 0 and 1.",
        ),
        ({"partitions": [0.0, 0.2]}, "ThermodynamicELBO: expected points that rise within (0, 1); got [0.0, 0.2]."),
        ({"sum": "middle"}, "ThermodynamicELBO: expected sum one of 'left', 'right'; got 'middle'. Give one of these."),
    ],
)
def test_ThermodynamicELBO_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        ThermodynamicELBO(5, **options)
