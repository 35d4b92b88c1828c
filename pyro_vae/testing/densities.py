"""A density against 1, and against the samples that are drawn from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from pyro.distributions import Independent
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor

from pyro_vae import distributions
from pyro_vae.testing.quadrature import elementwise_rule, joint_rule, location
from pyro_vae.testing.requirements import require, seeded

_CHUNK = 20_000


def check_density(d: TorchDistribution, *, num_samples: int = 100_000, tolerance: float = 1e-3, seed: int = 0) -> None:
    r"""Checks that a density integrates (a probability sums) to 1, and that its samples come from it.

    The integral is taken in the unconstrained coordinates of the support, centered on samples: over each element, where
    the density is a product over them, by a trapezoid rule that reaches far into heavy tails; jointly by a quasi-random
    rule, whose error in three dims is near 1e-5. A sum runs over all outcomes, or far beyond the largest sample.
    Samples are compared with the density through :math:`E \cos(w x)` and :math:`E \sin(w x)` at several frequencies w,
    which exist for every distribution, for each element and for the whole event.

    Args:
        d: of ``batch_shape`` (), in double precision.
        num_samples: draws to compare.
        tolerance: largest error of the integral; also added to the five standard errors that a mean over samples may be
            off, each of which a right sampler exceeds with probability 6e-7.
        seed: of the draws.

    Raises:
        AssertionError: naming what was expected.
        ValueError: a density too large, or a support without a rule.

    Example:
        >>> from pyro.distributions import Normal
        >>> class Twice(Normal):
        ...     def log_prob(self, value):
        ...         return super().log_prob(value) + math.log(2)
        >>> check_density(Normal(torch.zeros(()).double(), 1.0), num_samples=1000)
        >>> check_density(Twice(torch.zeros(()).double(), 1.0), num_samples=1000)
        Traceback (most recent call last):
        AssertionError: Contract: expected a density of integral 1 within 0.001; got an error of 1.
    """
    with seeded(seed), torch.no_grad():
        for factor in _factors(d):
            factor = factor if factor.event_shape else Independent(factor, 0)
            samples = factor.sample(Size([num_samples]))
            center, spread = location(samples)
            elementwise = isinstance(factor, Independent) and not factor.base_dist.event_shape
            if elementwise:
                points, log_weights = elementwise_rule(factor, samples)
                log_prob = distributions.elementwise_log_prob(factor, points)
            else:
                points, log_weights = joint_rule(factor, samples)
                log_prob = torch.cat([factor.log_prob(chunk) for chunk in points.split(_CHUNK)])
            mass = (log_prob + log_weights).exp()
            error = float((mass.sum(0) - 1).abs().max())
            require(error <= tolerance, f"a density of integral 1 within {tolerance:g}", f"an error of {error:.2g}")
            points, samples = ((x - center) / spread for x in (points, samples))
            if elementwise:
                for frequency in (0.5, 1.0, 2.0, 4.0):
                    expected = (mass * torch.exp(1j * frequency * points)).sum(0)
                    _compare(torch.exp(1j * frequency * samples), expected, tolerance)
            for _ in range(8):
                direction = torch.randn(factor.event_shape, dtype=samples.dtype)
                if elementwise:
                    expected = (mass * torch.exp(1j * direction * points)).sum(0).prod()
                else:
                    expected = (mass * torch.exp(1j * (direction * points).reshape(len(points), -1).sum(-1))).sum()
                _compare(torch.exp(1j * (direction * samples).reshape(num_samples, -1).sum(-1)), expected, tolerance)


def check_own_draws(
    q: TorchDistribution,
    p: TorchDistribution,
    divergence: float | Callable[[Tensor], Tensor],
    *,
    num_draws: int = 20_000,
    seed: int = 0,
) -> float:
    r"""Checks a density where its own sampler goes: :math:`E_q[\log q - \log p]` by draws is KL(q || p).

    A draw that is rounded or clamped has the density of another point, and a bound that is computed from it may lie on
    the wrong side of log p(x). Run it at the ends of the parameters' range, in single precision.

    Args:
        q: the distribution to check, of ``batch_shape`` ().
        p: another one of the same support, such as the prior.
        divergence: KL(q || p) in nats, in closed form; or log q - log p in double precision by other code, a function
            of the draws (num_draws, \\*event_shape), where there is no closed form.
        num_draws: draws of q.
        seed: of the draws.

    Returns:
        The error in standard errors of the mean over draws; at most 5, which a right density exceeds with probability
        6e-7.

    Raises:
        AssertionError: a log-density of a draw is not finite, or the error is larger.

    Example:
        >>> from pyro.distributions import Normal
        >>> q, p = Normal(1.0, 0.5).to_event(0), Normal(0.0, 1.0).to_event(0)
        >>> check_own_draws(q, p, 0.81814718) < 5
        True
    """
    with seeded(seed), torch.no_grad():
        draws = q.sample(Size([num_draws]))
        log_q, log_p = q.log_prob(draws).double(), p.log_prob(draws).double()
    for name, log_prob in (("q", log_q), ("p", log_p)):
        require(bool(log_prob.isfinite().all()), f"a finite log_prob under {name} of draws of q", log_prob)
    ratio = log_q - log_p
    exact = divergence(draws.double()) if callable(divergence) else torch.full_like(ratio, divergence)
    error = float((ratio - exact).mean().abs())
    # The rounding of equal log-densities is no error; it is far below what a bound is read to.
    standard_error = float(ratio.std()) / math.sqrt(num_draws) + 1e-6 * (1 + float(log_q.abs().mean()))
    require(
        error <= 5 * standard_error,
        f"E_q[log q - log p] of {float(exact.mean()):.6g} within 5 x {standard_error:.2g}",
        f"{float(ratio.mean()):.6g}",
    )
    return error / standard_error


def _factors(d: TorchDistribution) -> Iterator[TorchDistribution]:
    """The independent parts of a density that are checked by themselves."""
    if isinstance(d, distributions.Joint):
        for _, part in d.parts:
            yield from _factors(part)
    elif isinstance(d, distributions.MissingAtRandom):
        yield from _factors(d.base_dist)
    else:
        yield d


def _compare(values: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compares the mean of complex values over their first dim with what it should be, part by part."""
    for sampled, truth in ((values.real, expected.real), (values.imag, expected.imag)):
        error = (sampled.mean(0) - truth).abs()
        bound = 5 * sampled.std(0) / math.sqrt(len(sampled)) + tolerance
        require(bool((error <= bound).all()), "samples from the density", f"a mean off by {float(error.max()):.3g}")
