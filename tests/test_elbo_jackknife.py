"""The jackknife bound: its mean, its bias, and its derivatives where a weight dominates."""

from __future__ import annotations

import re

import pytest
import torch
from bounds import GivenNormalNormal, exact_expectation, grid, jackknife
from oracles import NormalNormal, TwoStates

from pyro_vae.elbo import IWELBO, JackknifeELBO, log_weights

pytestmark = pytest.mark.usefixtures("global_store")

LOGIT = torch.tensor(-0.3, dtype=torch.float64)


@pytest.mark.parametrize("num_particles", [2, 3, 6])
def test_JackknifeELBO_mean_is_that_of_two_importance_weighted_bounds(num_particles: int) -> None:
    """E = K L_K - (K - 1) L_{K-1}, by enumeration."""
    k = num_particles
    found = exact_expectation(JackknifeELBO(k).bound, k, LOGIT)
    torch.testing.assert_close(found, k * TwoStates.bound(k, LOGIT) - (k - 1) * TwoStates.bound(k - 1, LOGIT))


def test_JackknifeELBO_mean_of_continuous_draws() -> None:
    noise, probability = grid(2)
    ones = torch.ones_like(probability)
    program = GivenNormalNormal(ones, 0 * ones, ones, noise)
    values = JackknifeELBO(2).bound(log_weights(program.model, program.guide, ones, num_particles=2))
    bounds = NormalNormal.bound_of_prior
    assert (probability @ values).item() == pytest.approx(2 * bounds[2] - bounds[1], abs=1e-7)


def test_JackknifeELBO_bias_falls_faster_than_that_of_importance_weighting() -> None:
    """As 1/K^2 in place of 1/K, and to the other side of log p(x): it is no lower bound."""
    gaps = {
        estimator: [
            exact_expectation(estimator(k).bound, k, LOGIT).item() - TwoStates.log_marginal_likelihood for k in (6, 12)
        ]
        for estimator in (IWELBO, JackknifeELBO)
    }
    assert gaps[IWELBO][0] / gaps[IWELBO][1] == pytest.approx(2, rel=0.1)
    assert gaps[JackknifeELBO][0] / gaps[JackknifeELBO][1] == pytest.approx(4, rel=0.35)
    assert all(gap < 0 for gap in gaps[IWELBO])
    assert all(abs(gap) < 0.2 * abs(other) for gap, other in zip(gaps[JackknifeELBO], gaps[IWELBO], strict=True))


def test_JackknifeELBO_of_a_bad_guide_is_above_the_evidence() -> None:
    """So that it has no maximum in the guide: its mean at q = Normal(1/2, s^2) rises with s."""
    noise, probability = grid(2)
    ones = torch.ones_like(probability)
    means = []
    for scale in (1.0, 4.0, 8.0):
        program = GivenNormalNormal(ones, ones / 2, scale * ones, noise)
        values = JackknifeELBO(2).bound(log_weights(program.model, program.guide, ones, num_particles=2))
        means.append((probability @ values).item())
    assert means == sorted(means)
    assert means[-1] > NormalNormal.log_marginal_likelihood(ones[:1]).item() + 10


def test_JackknifeELBO_draws_without_the_largest_weight_are_not_lost_to_rounding() -> None:
    """Without the dominating draw the sum of weights is far below the rounding of the whole sum."""
    weights = torch.tensor([[0.0], [-200.0], [-201.0]], dtype=torch.float64)
    torch.testing.assert_close(JackknifeELBO(3).bound(weights), jackknife(weights))
    assert torch.isfinite(JackknifeELBO(3).path_scale(weights)).all()


def test_JackknifeELBO_one_draw_is_refused() -> None:
    message = "JackknifeELBO: expected num_particles at least 2; got 1. Give a larger number."
    with pytest.raises(ValueError, match=re.escape(message)):
        JackknifeELBO(1)
