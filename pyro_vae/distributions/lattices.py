"""Whole numbers times a spacing: pixel levels k / 255, and counts that are stored as floats."""

from __future__ import annotations

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, constraints
from torch.types import _size

# How far a value may lie from the lattice, in spacings: single-precision k / 255 is within 2e-5, other data far off.
_TOLERANCE = 1e-3


class lattice(constraints.Constraint):
    """Multiples ``spacing * k`` of the whole numbers k that another constraint allows.

    Args:
        counts: the constraint on k.
        spacing: distance between neighboring values.

    Example:
        >>> lattice(constraints.integer_interval(0, 255), 1 / 255).check(torch.tensor([0.0, 0.2, 0.3, 2.0]))
        tensor([ True,  True, False, False])
    """

    is_discrete = True

    def __init__(self, counts: constraints.Constraint, spacing: float) -> None:
        self.counts = counts
        self.spacing = spacing
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        scaled = value / self.spacing
        nearest = scaled.round()
        return ((scaled - nearest).abs() < _TOLERANCE) & self.counts.check(nearest)

    def __repr__(self) -> str:
        return f"{self.spacing:g} * {self.counts!r}"


class Lattice(TorchDistribution):
    r"""x = spacing * k, k a whole number of another distribution: :math:`P(x) = P_k(x / \mathrm{spacing})`.

    A probability, not a density, so there is no Jacobian. Samples are floating point, of the base's dtype.

    Args:
        base_dist: the distribution of k: a Categorical or Binomial made from logits.
        spacing: distance between neighboring values of x.

    Example:
        >>> import pyro.distributions as dist
        >>> Lattice(dist.Categorical(logits=torch.zeros(256)), 1 / 255).mean
        tensor(0.5000)
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, base_dist: TorchDistribution, spacing: float, validate_args: bool | None = None) -> None:
        self.base_dist = base_dist
        self.spacing = spacing
        super().__init__(base_dist.batch_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return lattice(self.base_dist.support, self.spacing)  # type: ignore[arg-type]

    def expand(self, batch_shape: _size, _instance: object = None) -> Lattice:
        return type(self)(self.base_dist.expand(batch_shape), self.spacing, validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        if isinstance(self.base_dist, Categorical):  # torch leaves it undefined: categories have no order, levels have
            return self._moment(1)
        return self.base_dist.mean * self.spacing

    @property
    def variance(self) -> Tensor:
        if isinstance(self.base_dist, Categorical):
            return self._moment(2) - self._moment(1) ** 2
        return self.base_dist.variance * self.spacing**2

    def sample(self, sample_shape: _size = ()) -> Tensor:
        return self.base_dist.sample(sample_shape).to(self.base_dist.logits.dtype) * self.spacing

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.base_dist.log_prob((value / self.spacing).round())

    def _moment(self, power: int) -> Tensor:
        probs = self.base_dist.probs
        return probs @ (self.spacing * torch.arange(probs.shape[-1], dtype=probs.dtype, device=probs.device)) ** power
