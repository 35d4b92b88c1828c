"""Means and variances of gradients of continuous latents, against quadrature and the signal-to-noise table."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from bounds import BOUNDS, DEFINITIONS, GivenNormalNormal, assert_mean, grid, log_normal, moments, row_gradients
from oracles import NormalNormal
from torch import Tensor

from pyro_vae.elbo import ELBO, IWELBO, VIMCO, Score

pytestmark = pytest.mark.usefixtures("global_store")

ONE = torch.ones(1, dtype=torch.float64)
LOC, SCALE = 0.9, 0.8  # of the guide, away from the posterior of x = 1, Normal(.5, .5)

GRADIENTS: dict[str, Any] = {
    "pathwise": lambda: "pathwise",
    "stl": lambda: "stl",
    "dreg": lambda: "dreg",
    "score": lambda: "score",
    "leave one out": lambda: Score(baseline="leave_one_out"),
    "VIMCO": lambda: VIMCO(),
}


def exact_gradient(name: str, num_particles: int) -> Tensor:
    """The gradient of E[F] in (loc, log scale), with the draws on a grid that stays and densities that move."""
    parameters = torch.tensor([LOC, math.log(SCALE)], dtype=torch.float64, requires_grad=True)
    noise, _ = grid(num_particles)
    z = LOC + SCALE * noise
    log_q = log_normal(z, parameters[0], parameters[1])
    zero = torch.zeros(())
    likelihood, prior = log_normal(ONE, z, zero), log_normal(z, zero, zero)
    weight = 0.7 if name == "ELBO, beta" else 1.0
    values = DEFINITIONS[name](likelihood + weight * (prior - log_q))
    area = (0.125 * SCALE) ** num_particles
    return torch.autograd.grad((log_q.sum(0).exp() * values).sum() * area, parameters)[0]


@pytest.mark.parametrize("gradient", [name for name in GRADIENTS if name != "stl"])
@pytest.mark.parametrize("name", [name for name in BOUNDS if name != "VRMax"])
def test_Gradient_is_unbiased(name: str, gradient: str) -> None:
    noise, probability = grid(2)
    estimator = BOUNDS[name](2, GRADIENTS[gradient]())
    rows = torch.ones_like(probability)
    found = row_gradients(estimator, GivenNormalNormal(rows, LOC * rows, SCALE * rows, noise), rows)
    torch.testing.assert_close(probability @ found, exact_gradient(name, 2), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in BOUNDS if name != "VRMax"])
def test_STL_is_biased_but_for_the_elbo(name: str) -> None:
    noise, probability = grid(2)
    rows = torch.ones_like(probability)
    found = row_gradients(BOUNDS[name](2, "stl"), GivenNormalNormal(rows, LOC * rows, SCALE * rows, noise), rows)
    difference = (probability @ found - exact_gradient(name, 2)).abs()
    if name in ("ELBO", "ELBO, beta", "MIWELBO"):  # two bounds of one draw are the ELBO
        assert difference.max() < 1e-7
    else:
        assert difference.max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["pathwise", "score", "VIMCO"])
def test_VRMax_gradients_are_unbiased(gradient: str) -> None:
    """By sampling: its kink is not for quadrature, whose error the finest grid here brings to 1e-4."""
    rows = torch.ones(400_000, dtype=torch.float64)
    found = row_gradients(BOUNDS["VRMax"](2, GRADIENTS[gradient]()), NormalNormal(LOC * rows, SCALE * rows), rows)
    assert_mean(found, exact_gradient("VRMax", 2))


# Oracle A: variances at the exact posterior


@pytest.mark.parametrize("num_particles", [1, 2])
def test_IWELBO_variance_of_gradients_at_the_exact_posterior(num_particles: int) -> None:
    noise, probability = grid(num_particles)
    x = torch.full_like(probability, 1.3)
    loc, scale = NormalNormal.posterior(x)
    found = row_gradients(IWELBO(num_particles), GivenNormalNormal(x, loc, scale, noise), x)
    for column in found.T:
        mean, variance = moments(column, probability)
        assert mean == pytest.approx(0, abs=1e-9)
        assert variance == pytest.approx(2 / num_particles, abs=1e-8)


@pytest.mark.parametrize("num_particles", [5, 20])
def test_IWELBO_variance_falls_with_the_particles_at_the_exact_posterior(num_particles: int) -> None:
    x = torch.full((20_000,), 1.3, dtype=torch.float64)
    found = row_gradients(IWELBO(num_particles), NormalNormal.exact(x), x)
    assert_mean(found, [0.0, 0.0])
    assert found.var(0).tolist() == pytest.approx([2 / num_particles] * 2, rel=0.05)


@pytest.mark.parametrize("gradient", ["pathwise", "score"])
def test_ELBO_gradient_has_the_mean_and_variance_of_the_closed_form(gradient: str) -> None:
    noise, probability = grid(1)
    x = torch.full_like(probability, 1.3)
    program = GivenNormalNormal(x, 0.4 + 0 * x, 0.7 + 0 * x, noise)
    found = probability @ row_gradients(ELBO(gradient=gradient), program, x)  # type: ignore[arg-type]
    assert found.tolist() == pytest.approx([1.3 - 2 * 0.4, 1 - 2 * 0.49], abs=1e-9)


# Oracle B: the signal-to-noise ratio


def b_gradients(estimator: Any, num_rows: int) -> Tensor:
    """Gradients in loc at x = 1, q = Normal(1, 2/3), (num_rows,)."""
    parts = []
    for _ in range(math.ceil(num_rows * estimator.num_particles / 2e6)):
        rows = torch.ones(min(num_rows, int(2e6) // estimator.num_particles), dtype=torch.float64)
        parts.append(row_gradients(estimator, NormalNormal(rows, math.sqrt(2 / 3) * rows), rows)[:, 0])
    return torch.cat(parts)


TABLE = {
    1: (-1.0, 0.6124, 2.4495, -1.0, 2.4495),
    4: (-0.230626, 0.26679, 2.86757, -0.80766, 3.7372),
    16: (-0.053686, 0.12788, 5.21102, -0.76342, 7.27413),
    64: (-0.013157, 0.063418, 10.33561, -0.75329, 14.523),
    256: (-0.003273, 0.031647, 20.6470, -0.75082, 29.0395),
}


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["pathwise", "dreg", "stl"])
def test_IWELBO_signal_to_noise_ratios(gradient: str) -> None:
    """The ratio is within 5% up to K = 16; beyond, where noise hides it, mean, variance and the slope of its log."""
    column = {"pathwise": 1, "dreg": 2, "stl": 4}[gradient]
    ratios = {}
    for num_particles, row in TABLE.items():
        mean = row[3] if gradient == "stl" else row[0]
        # The ratio's standard error is about 1 / sqrt(rows), and 5% of the smallest two are .006 and .0016.
        num_rows = {1: 200_000, 4: 400_000}.get(num_particles, 600_000 if gradient == "pathwise" else 40_000)
        num_rows = min(num_rows, 100_000_000 // num_particles)
        found = b_gradients(BOUNDS["IWELBO"](num_particles, gradient), num_rows)
        assert_mean(found, mean)
        deviation = abs(mean) / row[column]
        assert found.var().item() == pytest.approx(deviation**2, rel=0.05)
        ratios[num_particles] = abs(found.mean() / found.std()).item()
        if num_particles <= 16:
            assert ratios[num_particles] == pytest.approx(row[column], rel=0.05)
    logs = torch.tensor([[math.log(k), math.log(ratio)] for k, ratio in ratios.items() if k >= 16])
    centered = logs - logs.mean(0)
    slope = (centered.prod(-1).sum() / centered[:, 0].square().sum()).item()
    assert slope == pytest.approx({"pathwise": -0.504, "dreg": 0.497, "stl": 0.499}[gradient], abs=0.05)
