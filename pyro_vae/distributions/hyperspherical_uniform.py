"""The uniform distribution on the unit sphere."""

from __future__ import annotations

import math

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.nn.functional import normalize
from torch.types import _size


def log_surface_area(dim: int) -> float:
    r"""Log of the area of the unit sphere of ``dim``-dimensional vectors, :math:`2 \pi^{d/2} / \Gamma(d/2)`.

    Example:
        >>> log_surface_area(2)  # the circle: log(2 pi)
        1.8378770664093453
    """
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


class HypersphericalUniform(TorchDistribution):
    r"""Constant density :math:`\Gamma(d/2) / (2 \pi^{d/2})` on the unit sphere of d-dimensional vectors.

    Has no parameters; a draw is a normalized Normal draw.

    Args:
        dim: d, at least 2.
        batch_shape: leading dims.
        like: a tensor whose dtype and device draws and densities have.

    References:
        Davidson, Falorsi, De Cao, Kipf, Tomczak, "Hyperspherical Variational Auto-Encoders", 2018,
        https://arxiv.org/abs/1804.00891

    Example:
        >>> HypersphericalUniform(3).log_prob(torch.tensor([0.0, 1.0, 0.0]))  # -log(4 pi)
        tensor(-2.5310)
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.sphere
    has_rsample = True

    def __init__(
        self, dim: int, batch_shape: _size = (), *, like: Tensor | None = None, validate_args: bool | None = None
    ) -> None:
        if dim < 2:
            raise ValueError(
                f"HypersphericalUniform: expected dim at least 2; got {dim}. Use Bernoulli for two points."
            )
        self._like = torch.empty(()) if like is None else like.detach()
        super().__init__(Size(batch_shape), Size((dim,)), validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: object = None) -> HypersphericalUniform:
        dim = self.event_shape[0]
        return HypersphericalUniform(dim, batch_shape, like=self._like, validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        return self._like.new_zeros(self.batch_shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return value.new_full(shape, -log_surface_area(self.event_shape[0]))

    def entropy(self) -> Tensor:
        return self._like.new_full(self.batch_shape, log_surface_area(self.event_shape[0]))

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        return normalize(torch.randn(shape, dtype=self._like.dtype, device=self._like.device), dim=-1)
