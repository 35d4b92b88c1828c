"""Points and weights by which a density is integrated, or a probability summed, over its whole support.

A rule is centered on samples, in the unconstrained coordinates of the support: over each element by itself, where the
density is a product over them, or over the whole event. It gives points and the logarithms of their weights.

Shapes: Q points.
"""

from __future__ import annotations

import math

import torch
from pyro.distributions import constraints as pyro_constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_vae import distributions

_MAX_OUTCOMES = 200_000
_NUM_POINTS = 2**14


def elementwise_rule(d: TorchDistribution, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Points (Q, \\*event) and the logarithms of their weights for every element by itself."""
    support = _unwrapped(support_of(d))
    if support.is_discrete:
        points = _values(support, samples).reshape(-1, *(1,) * len(d.event_shape))
        return points.expand(-1, *d.event_shape), torch.zeros_like(points)
    transform = biject_to(support)
    center, spread = location(transform.inv(samples))
    # sinh reaches far into the tails: 1e6 scales on the line, where they may be heavy; elsewhere they are thin.
    t = torch.linspace(-1, 1, 4001, dtype=samples.dtype) * (15 if support is constraints.real else 5)
    t = t.reshape(-1, *(1,) * len(d.event_shape))
    u = center + spread * t.sinh()
    points = transform(u)
    step = t.flatten()[1] - t.flatten()[0]
    return points, (step * spread * t.cosh()).log() + transform.log_abs_det_jacobian(u, points)


def joint_rule(d: TorchDistribution, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Points (Q, \\*event) and the logarithms of their weights (Q,) for the whole event."""
    support = support_of(d)
    if support.is_discrete:
        values = _values(_unwrapped(support), samples)
        count = d.event_shape.numel()
        if len(values) ** count > _MAX_OUTCOMES:
            raise ValueError(
                f"check_density: expected at most {_MAX_OUTCOMES} outcomes; got {len(values)}^{count}. Give a smaller "
                "member."
            )
        points = torch.cartesian_prod(*[values] * count).reshape(-1, *d.event_shape)
        points = points[support.check(points)]
        return points, points.new_zeros(len(points))
    if support is pyro_constraints.sphere:
        return _sphere_rule(d.event_shape[0], samples.dtype)
    transform = biject_to(support)
    u = transform.inv(samples)
    dims = u.shape[-1]
    if u.dim() != 2 or dims > 3:
        raise ValueError(
            f"check_density: expected at most 3 dims that depend on each other; got {tuple(u.shape[1:])}. Give a "
            "smaller member."
        )
    # The mean of many samples may lie far off in heavy tails; quantiles do not.
    center, spread = location(u)
    # A quasi-random rule: logistic quantiles, whose tails are heavier than most, along the axes of the samples.
    quantiles = torch.quasirandom.SobolEngine(dims, scramble=True, seed=0).draw(_NUM_POINTS, dtype=u.dtype)
    quantiles = quantiles.clamp(torch.finfo(u.dtype).eps, 1 - torch.finfo(u.dtype).eps)
    axes = torch.linalg.cholesky(torch.corrcoef(u.T).reshape(dims, dims) + 1e-6 * torch.eye(dims, dtype=u.dtype))
    u = center + spread * (quantiles.logit() @ axes.T)
    log_volume = -(quantiles.log() + (1 - quantiles).log()).sum(-1) + spread.log().sum() + axes.diagonal().log().sum()
    points = transform(u)
    return points, log_volume - math.log(_NUM_POINTS) + transform.log_abs_det_jacobian(u, points)


def _sphere_rule(dims: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The unit circle, or the unit sphere by height and longitude."""
    angle = torch.arange(400, dtype=dtype) * (2 * math.pi / 400)
    circle = torch.stack([angle.cos(), angle.sin()], -1)
    if dims == 2:
        return circle, torch.full_like(angle, 2 * math.pi / 400).log()
    if dims != 3:
        raise ValueError(f"check_density: expected a sphere in 2 or 3 dims; got {dims}. Give a smaller member.")
    height = (torch.arange(400, dtype=dtype) + 0.5) / 200 - 1
    radius = (1 - height**2).sqrt()
    points = torch.cat([radius[:, None, None] * circle, height[:, None, None].expand(-1, 400, 1)], -1).reshape(-1, 3)
    return points, torch.full_like(points[:, 0], 2 * math.pi / 400 / 200).log()


def location(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Median and half the width of the middle two thirds of every element, never 0."""
    low, center, high = samples.quantile(torch.tensor([1 / 6, 0.5, 5 / 6], dtype=samples.dtype), 0)
    spread = (high - low) / 2
    # A discrete element may hold one value in most samples.
    return center, torch.where(spread > 0, spread, samples.std(0).clamp_min(1e-3))


def support_of(d: TorchDistribution) -> constraints.Constraint:
    """The support of a distribution, of a mixture that of its components."""
    support = d.support
    if support is None:
        raise AssertionError(f"Contract: expected a distribution with a support; got {type(d).__name__}.")
    # Components of a mixture have one support, and the mixture has it too.
    return support.base_constraint if isinstance(support, constraints.MixtureSameFamilyConstraint) else support


def _unwrapped(support: constraints.Constraint) -> constraints.Constraint:
    """The constraint on single elements."""
    while isinstance(support, (constraints.independent, constraints.MixtureSameFamilyConstraint)):
        support = support.base_constraint
    return support


def _values(support: constraints.Constraint, samples: Tensor) -> Tensor:
    """Values of one element in ascending order; far beyond the largest sample where they do not end."""
    if isinstance(support, distributions.lattice):
        return _values(support.counts, samples / support.spacing) * support.spacing
    largest = float(samples.max())
    if support in (constraints.boolean, constraints.one_hot):
        largest = 1
    elif isinstance(support, constraints.integer_interval):
        largest = float(torch.as_tensor(support.upper_bound).max())
    elif not isinstance(support, distributions.counts_of):
        largest = 4 * largest + 60
    return torch.arange(largest + 1, dtype=samples.dtype)
