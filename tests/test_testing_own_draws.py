"""Every density where its own sampler goes, from mild to extreme parameters, in single precision."""

from collections.abc import Callable

import extremes
import pytest

from pyro_vae.testing import check_own_draws

CASES = dict(extremes.cases())
# Of flows, whose draws take a second, the mildest and the middle ones repeat what the extreme ones show.
REPEATED = {f"{flow} weights={weights}" for flow in ("NeuralSpline", "Sylvester") for weights in ("0.1", "1")}
MILD = {name for name in CASES if "dims=5000" not in name and "dims=2000" not in name} - REPEATED


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in MILD else pytest.mark.slow) for n in CASES])
def test_check_own_draws_of_every_density(name: str) -> None:
    make: Callable[[], extremes.Case] = CASES[name]
    q, p, divergence, num_draws = make()
    check_own_draws(q, p, divergence, num_draws=num_draws)
