r"""The continuous Bernoulli, written in its logit so that it is exact at and near 1/2 and far in the tails."""

from __future__ import annotations

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.types import _size

# Below this |logit| the closed forms lose digits to cancellation, and their series in it is exact to rounding.
_SMALL = 0.5


class ContinuousBernoulli(TorchDistribution):
    r"""Density on [0, 1] with :math:`\log p(x) = l x - A(l), \; A(l) = \log\frac{e^l - 1}{l}`, l the logit.

    With :math:`\lambda = \mathrm{sigmoid}(l)` this is :math:`C(\lambda) \lambda^x (1 - \lambda)^{1 - x}`, of normalizer
    :math:`C = l / \tanh(l / 2)`, which is 2 at :math:`\lambda = 1/2`. ``torch.distributions.ContinuousBernoulli``
    works from :math:`\lambda` instead: in float32 its gradient is off by 3e-3 near 1/2, where the true one is as
    small, and has the wrong sign for logits beyond 16, where :math:`\lambda` is clamped.

    Args:
        logits: l, any real numbers.

    References:
        Loaiza-Ganem, Cunningham, "The continuous Bernoulli: fixing a pervasive error in variational autoencoders",
        2019, https://arxiv.org/abs/1907.06845

    Example:
        >>> ContinuousBernoulli(torch.tensor(0.0)).log_prob(torch.tensor(0.3)).abs().item()  # uniform at lambda = 1/2
        0.0
    """

    arg_constraints = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: object = None) -> ContinuousBernoulli:
        return type(self)(self.logits.expand(batch_shape), validate_args=self._validate_args)

    @property
    def probs(self) -> Tensor:
        """sigmoid(l), which is not the mean."""
        return self.logits.sigmoid()

    @property
    def log_normalizer(self) -> Tensor:
        """The logarithm of C, at least log 2."""
        return self.logits.abs() / 2 + torch.nn.functional.softplus(-self.logits.abs()) - _log_sinhc(self.logits / 2)

    @property
    def mean(self) -> Tensor:
        r""":math:`A'(l) = 1 / (1 - e^{-l}) - 1 / l`."""
        square = self.logits**2
        series = 0.5 + self.logits / 12 * (
            1 - square / 60 * (1 - square / 42 * (1 - square / 40 * (1 - 5 * square / 198)))
        )
        logits = self._away_from_zero()
        return torch.where(self.logits.abs() < _SMALL, series, -1 / torch.expm1(-logits) - 1 / logits)

    @property
    def variance(self) -> Tensor:
        r""":math:`A''(l) = 1 / l^2 - 1 / (4 \sinh^2(l / 2))`."""
        square = self.logits**2
        series = 1 / 12 - square / 240 * (1 - 5 * square / 126 * (1 - 7 * square / 200 * (1 - 5 * square / 154)))
        a = self._away_from_zero().abs()
        return torch.where(self.logits.abs() < _SMALL, series, a**-2 - torch.exp(-a) / torch.expm1(-a) ** 2)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # A(l) = l / 2 + log(sinh(l / 2) / (l / 2))
        return self.logits * (value - 0.5) - _log_sinhc(self.logits / 2)

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        return self.icdf(torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device))

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile of each probability in ``value``."""
        # log(1 + u (e^l - 1)) / l, in two forms that take no exponential of a positive number and no difference from 1.
        # Near l = 0 the expansion in l keeps the gradient in it.
        small = self.logits.abs() < 1e-4
        a = torch.where(small, torch.ones_like(self.logits), self.logits).abs()
        rising = torch.logaddexp(torch.log1p(-value), value.log() + a) / a
        falling = -torch.log1p(value * torch.expm1(-a)) / a
        x = torch.where(self.logits > 0, rising, falling)
        series = value + self.logits * value * (1 - value) / 2 * (1 + self.logits * (1 - 2 * value) / 3)
        return torch.where(small, series, x).clamp(0, 1)

    def _away_from_zero(self) -> Tensor:
        return torch.where(self.logits.abs() < _SMALL, torch.ones_like(self.logits), self.logits)


def _log_sinhc(h: Tensor) -> Tensor:
    """log(sinh(h) / h), 0 at 0, without overflow and with exact gradients."""
    square = h**2
    series = square / 6 * (1 - square / 30 * (1 - 4 * square / 63 * (1 - 3 * square / 40 * (1 - 8 * square / 99))))
    a = torch.where(h.abs() < _SMALL / 2, torch.ones_like(h), h.abs())
    return torch.where(h.abs() < _SMALL / 2, series, a + torch.log(-torch.expm1(-2 * a) / (2 * a)))
