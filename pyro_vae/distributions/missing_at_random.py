"""Data with missing elements: NaN stands for an element that was not observed."""

from __future__ import annotations

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.types import _size

from pyro_vae.distributions.elementwise import elementwise_log_prob


class MissingAtRandom(TorchDistribution):
    r"""The marginal density of the observed elements: :math:`\log p(x) = \sum_{d: x_d \text{ observed}} \log p_d(x_d)`.

    A missing element is NaN. It adds neither to the log-density nor to any gradient: ``placeholder`` takes its place
    before the base density sees it, since a NaN that is masked out only afterwards still spoils the gradient. Samples
    and mean are the base's, hence complete.

    Args:
        base_dist: a density that is a product over elements; see :func:`elementwise_log_prob`.
        placeholder: a value within the base's support, inside it where the density has an edge; broadcasts to the
            event.

    Example:
        >>> import pyro.distributions as dist
        >>> d = MissingAtRandom(dist.Normal(torch.zeros(3), 1.0).to_event(1), torch.tensor(0.0))
        >>> d.log_prob(torch.tensor([0.0, torch.nan, torch.nan]))
        tensor(-0.9189)
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, base_dist: TorchDistribution, placeholder: Tensor, validate_args: bool | None = None) -> None:
        self.base_dist = base_dist
        self.placeholder = placeholder
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base_dist.has_rsample

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return or_missing(self.base_dist.support, self.placeholder)  # type: ignore[arg-type]

    def expand(self, batch_shape: _size, _instance: object = None) -> MissingAtRandom:
        return type(self)(self.base_dist.expand(batch_shape), self.placeholder, validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        return self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        return self.base_dist.variance

    def sample(self, sample_shape: _size = ()) -> Tensor:
        return self.base_dist.sample(sample_shape)

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        return self.base_dist.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_prob = self.elementwise_log_prob(value)
        return log_prob.sum(list(range(-len(self.event_shape), 0))) if self.event_shape else log_prob

    def elementwise_log_prob(self, value: Tensor) -> Tensor:
        """The log-density of every element, 0 where it is missing."""
        missing = value.isnan()
        log_prob = elementwise_log_prob(self.base_dist, torch.where(missing, self.placeholder, value))
        return log_prob.masked_fill(missing, 0.0)


class or_missing(constraints.Constraint):
    """What another constraint allows, with NaN in the place of any element.

    Args:
        constraint: the other one.
        placeholder: what it allows, put in the place of NaN; broadcasts to the event.

    Example:
        >>> or_missing(constraints.boolean, torch.tensor(0.0)).check(torch.tensor([1.0, torch.nan, 2.0]))
        tensor([ True,  True, False])
    """

    def __init__(self, constraint: constraints.Constraint, placeholder: Tensor) -> None:
        self.constraint = constraint
        self.placeholder = placeholder
        self.is_discrete = constraint.is_discrete
        self.event_dim = constraint.event_dim
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return self.constraint.check(torch.where(value.isnan(), self.placeholder, value))

    def __repr__(self) -> str:
        return f"{self.constraint!r} or missing"
