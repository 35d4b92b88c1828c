"""Rényi bounds: their limit in K, their order in alpha, and the largest weight."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from bounds import GivenNormalNormal, exact_expectation, quantiles
from oracles import NormalNormal, TwoStates
from torch import Tensor

from pyro_vae.elbo import ELBO, IWELBO, RenyiELBO, VRMax, log_weights

pytestmark = pytest.mark.usefixtures("global_store")

ONE = torch.ones(1, dtype=torch.float64)


@pytest.fixture(scope="module")
def many() -> GivenNormalNormal:
    """The prior as the proposal at x = 1, with draws that are the quantiles of it: as good as K = infinity."""
    return GivenNormalNormal(ONE, 0 * ONE, ONE, quantiles(200_000))


@pytest.mark.parametrize(("alpha", "value"), [(0.5, -1.657737), (0.75, -1.765226), (-1.0, -1.360258)])
def test_RenyiELBO_limit_of_many_draws(many: GivenNormalNormal, alpha: float, value: float) -> None:
    loss = RenyiELBO(200_000, "score", alpha=alpha).loss(many.model, many.guide, ONE)
    assert -loss == pytest.approx(value, abs=5e-6)
    assert -loss == pytest.approx(NormalNormal.renyi_of_prior(ONE, alpha).item(), abs=5e-6)


def test_RenyiELBO_bounds_fall_with_alpha(many: GivenNormalNormal) -> None:
    weights = log_weights(many.model, many.guide, ONE, num_particles=200_000)
    falling = [
        VRMax(2).bound(weights),
        *(RenyiELBO(2, alpha=alpha).bound(weights) for alpha in (-50, -1, 0, 0.5, 0.99, 1.01, 5)),
    ]
    assert [b.item() for b in falling] == sorted((b.item() for b in falling), reverse=True)
    torch.testing.assert_close(RenyiELBO(2, alpha=-3000.0).bound(weights), VRMax(2).bound(weights), rtol=0, atol=0.005)
    torch.testing.assert_close(RenyiELBO(2, alpha=1 - 1e-6).bound(weights), ELBO(2).bound(weights), rtol=0, atol=1e-5)
    assert RenyiELBO(2, alpha=0.0).bound(weights).item() == pytest.approx(-1.51551212, abs=5e-6)  # log p(x)


@pytest.mark.parametrize("alpha", [-3.0, 0.5, 2.0])
def test_RenyiELBO_one_draw_is_the_elbo_whatever_alpha(alpha: float) -> None:
    logit = torch.tensor(0.4, dtype=torch.float64)
    expected = TwoStates.bound(1, logit).item()
    assert exact_expectation(RenyiELBO(1, alpha=alpha).bound, 1, logit).item() == pytest.approx(expected, abs=1e-12)


def test_RenyiELBO_negative_alpha_bounds_from_above_at_many_draws_alone() -> None:
    logit = torch.zeros((), dtype=torch.float64)
    few, many = (exact_expectation(RenyiELBO(k, alpha=-1.0).bound, k, logit).item() for k in (1, 10))
    assert few < TwoStates.log_marginal_likelihood < many


def test_VRMax_is_the_largest_weight() -> None:
    weights = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(VRMax(5).bound(weights), weights.amax(0))
    assert (VRMax(5).bound(weights) > IWELBO(5).bound(weights)).all()


def test_RenyiELBO_large_weights_do_not_overflow() -> None:
    weights: Tensor = torch.tensor([[-1000.0], [-1010.0]])
    for alpha in (-20.0, 0.0, 0.5, 20.0):
        assert torch.isfinite(RenyiELBO(2, alpha=alpha).bound(weights)).all()
        assert torch.isfinite(RenyiELBO(2, alpha=alpha).path_scale(weights)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [1 + sign * 10.0**-power for sign in (-1, 1) for power in (3, 6, 9, 12)])
def test_RenyiELBO_nothing_cancels_near_one(alpha: float, dtype: torch.dtype) -> None:
    """Value and gradient are the ELBO's, corrected by half of (1 - alpha) times the variance of the log-weights."""
    weights = (10 * torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 100).to(dtype)
    weights.requires_grad_()
    found = RenyiELBO(7, alpha=alpha).bound(weights)
    (slope,) = torch.autograd.grad(found.sum(), weights)
    double, power = weights.detach().double(), 1 - alpha
    centered = double - double.mean(0)
    exact = double.mean(0) + power * centered.square().mean(0) / 2 + power**2 * (centered**3).mean(0) / 6
    rounding = 64 * torch.finfo(dtype).eps
    fourth = abs(power) ** 3 * float((centered**4).mean(0).max())
    torch.testing.assert_close(found.double(), exact, rtol=rounding, atol=fourth)
    torch.testing.assert_close(slope.double(), (power * double).softmax(0), rtol=200 * rounding, atol=0)


def test_RenyiELBO_weights_of_zero_and_far_apart_ones_are_no_obstacle() -> None:
    weights = torch.tensor([[0.0], [-math.inf], [-1e4]], dtype=torch.float64)
    assert RenyiELBO(3, alpha=0.5).bound(weights).item() == pytest.approx(2 * math.log(1 / 3), rel=1e-12)
    assert RenyiELBO(3, alpha=2.0).bound(weights).item() == -math.inf
    assert RenyiELBO(2, alpha=2.0).bound(weights[::2]).item() == pytest.approx(-1e4 + math.log(2), rel=1e-12)


@pytest.mark.parametrize(
    ("alpha", "error", "message"),
    [
        (1, ValueError, "RenyiELBO: expected an alpha other than 1; got 1. Use ELBO, its limit at 1."),
        (math.inf, ValueError, "RenyiELBO: expected alpha finite; got inf."),
        (math.nan, ValueError, "RenyiELBO: expected alpha finite; got nan."),
        ("0.5", TypeError, "RenyiELBO: expected alpha a number; got '0.5'."),
    ],
)
def test_RenyiELBO_bad_orders_are_refused(alpha: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        RenyiELBO(5, alpha=alpha)
