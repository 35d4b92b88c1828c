"""A density in other units: what a linear change of every element makes of it."""

from __future__ import annotations

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.types import _size

from pyro_vae.distributions.elementwise import elementwise_log_prob


class Affine(TorchDistribution):
    r"""The density of :math:`x = \mathrm{loc} + \mathrm{scale} \cdot y` for real :math:`y \sim p`, elementwise.

    .. math:: \log p(x) = \log p_y((x - \mathrm{loc}) / \mathrm{scale}) - \sum_d \log \mathrm{scale}_d.

    Args:
        base_dist: the density of y, on the reals.
        loc: of the event's shape, or what broadcasts to it.
        scale: positive, likewise.

    Example:
        >>> import pyro.distributions as dist
        >>> y = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> x = torch.tensor([1.7, 60.0])
        >>> in_meters = Affine(y, torch.tensor([1.6, 70.0]), torch.tensor([0.1, 10.0]))
        >>> in_meters.log_prob(x), dist.Normal(in_meters.mean, in_meters.stddev).to_event(1).log_prob(x)
        (tensor(-2.8379), tensor(-2.8379))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self, base_dist: TorchDistribution, loc: Tensor, scale: Tensor, validate_args: bool | None = None
    ) -> None:
        self.base_dist = base_dist
        self.loc = loc.expand(base_dist.event_shape)
        self.scale = scale.expand(base_dist.event_shape)
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base_dist.has_rsample

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: _size, _instance: object = None) -> Affine:
        return type(self)(self.base_dist.expand(batch_shape), self.loc, self.scale, validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        return self.loc + self.scale * self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        return self.scale**2 * self.base_dist.variance

    def sample(self, sample_shape: _size = ()) -> Tensor:
        with torch.no_grad():
            return self.loc + self.scale * self.base_dist.sample(sample_shape)

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        return self.loc + self.scale * self.base_dist.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.base_dist.log_prob((value - self.loc) / self.scale) - self.scale.log().sum()

    def elementwise_log_prob(self, value: Tensor) -> Tensor:
        """The log-density of every element, where the base density is a product over them."""
        return elementwise_log_prob(self.base_dist, (value - self.loc) / self.scale) - self.scale.log()
