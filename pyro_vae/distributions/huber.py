"""The density whose negative logarithm is Huber's loss: a Normal in the middle, a Laplace in the tails."""

from __future__ import annotations

import math

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.types import _size


class Huber(TorchDistribution):
    r"""Density :math:`p(x) = e^{-h(t)} / (\mathrm{scale}\, Z)`, t = (x - loc) / scale, h Huber's loss.

    :math:`h(t) = t^2 / 2` where :math:`|t| \le \delta`, else :math:`\delta (|t| - \delta / 2)`, and

    .. math:: Z = \sqrt{2 \pi}\, \mathrm{erf}(\delta / \sqrt 2) + \frac{2}{\delta} e^{-\delta^2 / 2}.

    Among the distributions that are a Normal but for a share of gross errors, the one of least Fisher information. It
    tends to a Normal as delta grows, and to a Laplace of scale / delta as it falls. Reparameterized in loc and scale.

    Args:
        loc: in the units of x.
        scale: likewise, positive: that of the Normal in the middle.
        delta: where the tails begin, a number above 0, in scales.

    References:
        Huber, "Robust Estimation of a Location Parameter", 1964, https://doi.org/10.1214/aoms/1177703732

    Example:
        >>> d = Huber(torch.tensor(0.0), torch.tensor(1.0), 1.0)
        >>> x = torch.tensor([0.0, 3.0])
        >>> d.log_prob(x[:1]) - d.log_prob(x) - torch.nn.functional.huber_loss(x, torch.zeros(2), reduction="none")
        tensor([0., 0.])
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.real
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, delta: float, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.delta = delta
        # Z in its two parts: the mass of the Normal in the middle, and that of both tails.
        self._middle = math.sqrt(2 * math.pi) * math.erf(delta / math.sqrt(2))
        self._tails = 2 / delta * math.exp(-(delta**2) / 2)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: object = None) -> Huber:
        return Huber(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.delta, self._validate_args)

    @property
    def log_normalizer(self) -> Tensor:
        """log(scale Z)."""
        return self.scale.log() + math.log(self._middle + self._tails)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        tails = self._tails * 2 * (1 + self.delta**-2)
        return self.scale**2 * ((self._middle + tails) / (self._middle + self._tails))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        distance = ((value - self.loc) / self.scale).abs()
        near = distance.clamp(max=self.delta)
        # near (distance - near / 2) is both cases of h, with their gradients, and squares no large number
        return -near * (distance - near / 2) - self.log_normalizer

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        uniform = torch.rand((2, *shape), dtype=self.loc.dtype, device=self.loc.device)
        middle = math.sqrt(2) * torch.erfinv(uniform[0] * math.erf(self.delta / math.sqrt(2)))
        tail = self.delta + torch.empty_like(middle).exponential_() / self.delta
        distance = torch.where(uniform[1] * (self._middle + self._tails) < self._middle, middle, tail)
        return self.loc + self.scale * torch.where(torch.rand_like(distance) < 0.5, -distance, distance)
