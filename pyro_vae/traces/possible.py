"""An impossible figure is an error: where data have probabilities, no bound on log p(x) lies above 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyro_vae.traces.densities import log_densities
from pyro_vae.traces.tracing import Traces

MIN_DATA = 30
"""Fewer data do not tell their standard error."""

_ROUNDING = 1e-3  # nats


def check_possible(subject: str, bound: Tensor, run: Callable[[], Traces], plate: str) -> None:
    """Raises for a bound on log p(x) above 0 by more than five standard errors where x has probabilities, no densities.

    Then a density is wrong, most often that of a latent at its own draws, and training exploits it. Bounds of
    densities may have any sign, and so may one of fewer than 30 data, which is not judged.

    Args:
        subject: who asks, for the message.
        bound: estimates of a lower bound on log p(x), in nats, (N,).
        run: makes a run of the program on some of these data; called where the figure is suspicious.
        plate: name of the data plate.

    Raises:
        ValueError: naming the site whose density is the least possible.
    """
    n = bound.numel()
    if n < MIN_DATA:
        return
    mean, standard_error = float(bound.mean()), float(bound.std()) / math.sqrt(n)
    if not mean > 5 * standard_error + _ROUNDING:
        return
    traces = run()
    observed = list(traces.observed())
    if not observed or not all(_is_mass(site["fn"]) for _, site in observed):
        return
    densities = log_densities(traces, plate)
    if float(densities.likelihood.mean()) > _ROUNDING:
        site, what = observed[0][0], f"a mean log-likelihood of {float(densities.likelihood.mean()):.4g} nats"
    else:
        divergences = {name: float(value.mean()) for name, value in densities.differences().items()}
        site = min(divergences, key=lambda name: divergences[name])
        what = f"a KL of {divergences[site]:.4g} nats"
    raise ValueError(
        f"{subject}: expected a bound on log p(x) of at most 0, as the data have probabilities; got {mean:.4g} nats "
        f"per datum with standard error {standard_error:.2g}. Site {site!r} has {what}, so its density is wrong: run "
        "testing.check_own_draws on it."
    )


def _is_mass(distribution: Any) -> bool:
    support = getattr(distribution, "support", None)
    return bool(getattr(support, "is_discrete", False))
