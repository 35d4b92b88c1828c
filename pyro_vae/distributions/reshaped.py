"""A distribution of vectors as one of arrays, such as the grid of latents of a convolutional encoder."""

from __future__ import annotations

from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.types import _size


class Shaped(TorchDistribution):
    """Draws of a distribution of vectors, in another shape.

    Args:
        base_dist: of real vectors.
        event_shape: of as many elements.

    Example:
        >>> import torch
        >>> import pyro.distributions as dist
        >>> grid = Shaped(dist.MultivariateNormal(torch.zeros(4), torch.eye(4)), Size((1, 2, 2)))
        >>> grid.log_prob(torch.zeros(1, 2, 2))  # -2 log(2 pi)
        tensor(-3.6758)
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, base_dist: TorchDistribution, event_shape: Size, validate_args: bool | None = None) -> None:
        self.base_dist = base_dist
        self._draw: tuple[Tensor, Tensor] | None = None
        super().__init__(base_dist.batch_shape, event_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return bool(self.base_dist.has_rsample)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        return self._shaped(self.base_dist.mean)

    @property
    def variance(self) -> Tensor:
        return self._shaped(self.base_dist.variance)

    def expand(self, batch_shape: _size, _instance: object = None) -> Shaped:
        return Shaped(self.base_dist.expand(batch_shape), self.event_shape, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        if self._draw is not None and value is self._draw[0]:
            return self.base_dist.log_prob(
                self._draw[1]
            )  # a flow knows the density of its own draw, and need not invert
        lead = value.shape[: value.dim() - len(self.event_shape)]
        return self.base_dist.log_prob(value.reshape(lead + self.base_dist.event_shape))

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        return self._keep(self.base_dist.rsample(sample_shape))

    def sample(self, sample_shape: _size = ()) -> Tensor:
        return self._keep(self.base_dist.sample(sample_shape))

    def _keep(self, draw: Tensor) -> Tensor:
        self._draw = self._shaped(draw), draw
        return self._draw[0]

    def _shaped(self, value: Tensor) -> Tensor:
        return value.reshape(value.shape[:-1] + self.event_shape)


def shaped(distribution: TorchDistribution, event_shape: Size) -> TorchDistribution:
    """A distribution of vectors in this shape; itself where that is a vector's.

    Example:
        >>> import torch
        >>> import pyro.distributions as dist
        >>> vector = dist.MultivariateNormal(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.eye(4))
        >>> shaped(vector, Size((2, 2))).mean
        tensor([[1., 2.],
                [3., 4.]])
    """
    return distribution if distribution.event_shape == event_shape else Shaped(distribution, event_shape)
