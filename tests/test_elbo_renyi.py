"""Rényi bounds: their limit in K, their order in alpha, and the largest weight."""

from __future__ import annotations

import re
from collections.abc import Callable

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
def test_the_limit_of_many_draws(many: GivenNormalNormal, alpha: float, value: float) -> None:
    loss = RenyiELBO(alpha, 200_000, "score").loss(many.model, many.guide, ONE)
    assert -loss == pytest.approx(value, abs=5e-6)
    assert -loss == pytest.approx(NormalNormal.renyi_of_prior(ONE, alpha).item(), abs=5e-6)


def test_bounds_fall_with_alpha(many: GivenNormalNormal) -> None:
    weights = log_weights(many.model, many.guide, ONE, num_particles=200_000)
    falling = [
        VRMax(2).bound(weights),
        *(RenyiELBO(alpha, 2).bound(weights) for alpha in (-50, -1, 0, 0.5, 0.99, 1.01, 5)),
    ]
    assert [b.item() for b in falling] == sorted((b.item() for b in falling), reverse=True)
    torch.testing.assert_close(RenyiELBO(-3000.0, 2).bound(weights), VRMax(2).bound(weights), rtol=0, atol=0.005)
    torch.testing.assert_close(RenyiELBO(1 - 1e-6, 2).bound(weights), ELBO(2).bound(weights), rtol=0, atol=1e-5)
    assert RenyiELBO(0.0, 2).bound(weights).item() == pytest.approx(-1.51551212, abs=5e-6)  # log p(x)


@pytest.mark.parametrize("alpha", [-3.0, 0.5, 2.0])
def test_one_draw_is_the_elbo_whatever_alpha(alpha: float) -> None:
    logit = torch.tensor(0.4, dtype=torch.float64)
    expected = TwoStates.bound(1, logit).item()
    assert exact_expectation(RenyiELBO(alpha, 1).bound, 1, logit).item() == pytest.approx(expected, abs=1e-12)


def test_negative_alpha_bounds_from_above_at_many_draws_alone() -> None:
    logit = torch.zeros((), dtype=torch.float64)
    few, many = (exact_expectation(RenyiELBO(-1.0, k).bound, k, logit).item() for k in (1, 10))
    assert few < TwoStates.log_marginal_likelihood < many


def test_the_largest_weight() -> None:
    weights = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(VRMax(5).bound(weights), weights.amax(0))
    assert (VRMax(5).bound(weights) > IWELBO(5).bound(weights)).all()


def test_large_weights_do_not_overflow() -> None:
    weights: Tensor = torch.tensor([[-1000.0], [-1010.0]])
    for alpha in (-20.0, 0.0, 0.5, 20.0):
        assert torch.isfinite(RenyiELBO(alpha, 2).bound(weights)).all()
        assert torch.isfinite(RenyiELBO(alpha, 2).path_scale(weights)).all()


REFUSED: dict[str, Callable[[], object]] = {
    "1": lambda: RenyiELBO(1, 5),
    "inf": lambda: RenyiELBO(float("inf"), 5),
}


@pytest.mark.parametrize("alpha", REFUSED)
def test_alpha_one_is_the_elbo(alpha: str) -> None:
    message = f"RenyiELBO: expected a finite alpha other than 1; got {alpha}. Use ELBO for its limit at 1."
    with pytest.raises(ValueError, match=re.escape(message)):
        REFUSED[alpha]()
