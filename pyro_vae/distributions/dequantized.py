"""Discrete data under a continuous density, by uniform dequantization."""

from __future__ import annotations

import math

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.types import _size

from pyro_vae.distributions.elementwise import elementwise_log_prob
from pyro_vae.distributions.lattices import lattice


def dequantize(x: Tensor, levels: int = 256, generator: torch.Generator | None = None) -> Tensor:
    r"""Spreads x = k / (levels - 1) over its cell: :math:`y = (k + u) / \mathrm{levels},\; u \sim U[0, 1)`.

    y lies in the open interval (0, 1), at least one rounding unit away from its ends, where densities on it may be
    infinite.

    Args:
        x: values k / (levels - 1), k = 0, ..., levels - 1.
        levels: number of values.
        generator: draws u; the global generator when left out.

    Example:
        >>> (dequantize(torch.tensor([0.0, 1.0]), levels=2) * 2).floor()
        tensor([0., 1.])
    """
    u = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    eps = torch.finfo(x.dtype).eps
    u = u * (1 - levels * eps)  # else k + u may round to k + 1, the next cell
    return (((x * (levels - 1)).round() + u) / levels).clamp(eps, 1 - eps)


class Dequantized(TorchDistribution):
    r"""P(x) on x = k / (levels - 1): the probability of x's cell under a continuous density p of y in [0, 1].

    The cell of x is :math:`y = (k + u) / L` with :math:`u \in [0, 1)^D`, so

    .. math:: P(x) = \int_{\text{cell}} p(y)\, dy = L^{-D} E_{u \sim U[0, 1)^D}\, p((k + u) / L).

    ``log_prob`` draws one u for each element and every batch entry and returns :math:`\log p(y) - D \log L`. It is
    therefore *random*: its exponential is an unbiased estimate of P(x), and it is itself below :math:`\log P(x)` in
    expectation. An ELBO with it is a lower bound of the log-probability of the discrete data, an importance-sampling
    bound with a u for every draw of z too, and the latter tends to it; both are in nats of discrete data and compare
    with those of a :class:`DiscretizedLogistic` without a correction. A Markov chain that compares densities (AIS, HMC)
    needs a fixed one: take :func:`dequantize` of the data once, and the continuous density.

    ``mean`` is that of y, moved to the grid: :math:`(L E[y] - 1/2) / (L - 1)`, within [0, 1].

    Args:
        base_dist: a continuous density whose support contains (0, 1).
        levels: L, number of values of each element.

    References:
        Theis, van den Oord, Bethge, "A note on the evaluation of generative models", 2016,
        https://arxiv.org/abs/1511.01844

    Example:
        >>> import pyro.distributions as dist
        >>> uniform = dist.Uniform(torch.zeros(3), 1.0).to_event(1)
        >>> Dequantized(uniform, levels=2).log_prob(torch.tensor([0.0, 0.0, 1.0])).exp()
        tensor(0.1250)
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, base_dist: TorchDistribution, levels: int = 256, validate_args: bool | None = None) -> None:
        self.base_dist = base_dist
        self.levels = levels
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:
        grid = lattice(constraints.integer_interval(0, self.levels - 1), 1 / (self.levels - 1))
        return constraints.independent(grid, len(self.event_shape)) if self.event_shape else grid

    def expand(self, batch_shape: _size, _instance: object = None) -> Dequantized:
        return type(self)(self.base_dist.expand(batch_shape), self.levels, validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        return ((self.levels * self.base_dist.mean - 0.5) / (self.levels - 1)).clamp(0, 1)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        with torch.no_grad():
            y = self.base_dist.sample(sample_shape)
            return (y * self.levels).floor().clamp(0, self.levels - 1) / (self.levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.base_dist.log_prob(self._dequantize(value)) - self.event_shape.numel() * math.log(self.levels)

    def elementwise_log_prob(self, value: Tensor) -> Tensor:
        """The log-probability of every element, where the base density is a product over them."""
        return elementwise_log_prob(self.base_dist, self._dequantize(value)) - math.log(self.levels)

    def _dequantize(self, value: Tensor) -> Tensor:
        # A u of its own for every entry of the batch, so that K draws of z have K independent estimates.
        shape = torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        return dequantize(value.expand(shape), self.levels)
