r"""Pareto k-hat: how heavy the tail of importance weights is.

The largest weights of a proposal that is narrower than the posterior follow a generalized Pareto distribution of shape
k. Above 1/2 their variance is infinite, above 0.7 an average of them cannot be trusted at any practical number of
draws. A proposal that is too wide has light tails, so k-hat does not see it: the effective sample size does.

References:
    Vehtari, Simpson, Gelman, Yao, Gabry, "Pareto smoothed importance sampling", 2024, https://arxiv.org/abs/1507.02646
    Zhang, Stephens, "A new and efficient estimation method for the generalized Pareto distribution", 2009,
    https://doi.org/10.1198/tech.2009.08017
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

RELIABLE = 0.7
"""Largest k-hat at which an estimate is reliable."""

_MIN_TAIL = 5
_CONSTANT = 1e-3  # nats: weights this close together have no tail, and rounding alone sets them apart


def tail_size(num_particles: int) -> int:
    """Number of the largest weights that count as their tail: a fifth, or three square roots, of all."""
    return math.ceil(min(num_particles / 5, 3 * math.sqrt(num_particles)))


def pareto_k(largest: Tensor) -> float:
    """K-hat of one datum, for the weights as they are, without smoothing.

    Args:
        largest: the ``tail_size(K) + 1`` largest of K log-weights, in any order.

    Returns:
        -inf for a tail that is constant; inf for one in which a few weights outweigh the rest beyond the range of
        double precision; NaN for fewer than 21 draws, which show no tail.
    """
    largest = largest.double().cpu().sort().values
    if len(largest) <= _MIN_TAIL:
        return math.nan
    if largest[-1] - largest[0] < _CONSTANT:
        return -math.inf
    weights = (largest - largest[-1]).clamp(min=math.log(torch.finfo(largest.dtype).tiny)).exp()
    tail = weights[1:] - weights[0]
    tail = tail[tail > 0]
    return math.inf if len(tail) < _MIN_TAIL else _generalized_pareto_shape(tail)


def _generalized_pareto_shape(x: Tensor) -> float:
    """Shape of a generalized Pareto distribution from ascending values: Zhang and Stephens' posterior mean.

    With a weak prior of ten observations at 1/2, as in Vehtari et al. (2024), appendix C.
    """
    n = len(x)
    grid = torch.arange(30 + math.isqrt(n), dtype=x.dtype) + 0.5
    scale = (1 - (len(grid) / grid).sqrt()) / (3 * x[int(n / 4 + 0.5) - 1]) + 1 / x[-1]
    shape = torch.stack([torch.log1p(-s * x).mean() for s in scale])  # one by one, which takes no memory
    profile = n * ((-scale / shape).log() - shape - 1)
    best = (profile.softmax(0) * scale).sum()
    return ((n * torch.log1p(-best * x).mean() + 5) / (n + 10)).item()
