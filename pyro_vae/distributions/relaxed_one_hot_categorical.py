"""The Gumbel-softmax or Concrete distribution on the simplex."""

from __future__ import annotations

import math

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.types import _size


class RelaxedOneHotCategorical(TorchDistribution):
    r"""y = softmax((logits + Gumbel noise) / temperature), which tends to a one-hot vector as the temperature falls.

    .. math::  \log p(y) = \log\Gamma(d) + (d - 1) \log\tau + \sum_i (l_i - (\tau + 1) \log y_i)
               - d \log \sum_i e^{l_i - \tau \log y_i}

    with logits l and temperature :math:`\tau`. In single precision the draws stay positive and on the simplex, where
    those of ``torch.distributions.RelaxedOneHotCategorical`` reach 0, whose log-density is NaN, and miss the sum of 1
    at low temperatures. The mean has no closed form.

    Args:
        temperature: positive, without unit; a scalar.
        logits: unnormalised log-probabilities, (\*batch_shape, d).

    References:
        Maddison, Mnih, Teh, "The Concrete Distribution", 2017, https://arxiv.org/abs/1611.00712
        Jang, Gu, Poole, "Categorical Reparameterization with Gumbel-Softmax", 2017, https://arxiv.org/abs/1611.01144

    Example:
        >>> q = RelaxedOneHotCategorical(torch.tensor(1.0), torch.zeros(2))
        >>> round(q.log_prob(torch.tensor([0.3, 0.7])).item(), 6)  # uniform
        0.0
    """

    arg_constraints = {"temperature": constraints.positive, "logits": constraints.real_vector}
    support = constraints.simplex
    has_rsample = True

    def __init__(self, temperature: Tensor, logits: Tensor, validate_args: bool | None = None) -> None:
        self.temperature = temperature
        self.logits = logits
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: object = None) -> RelaxedOneHotCategorical:
        logits = self.logits.expand(Size(batch_shape) + self.event_shape)
        return RelaxedOneHotCategorical(self.temperature, logits, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        dim = self.event_shape[0]
        log_value = value.log()
        score = self.logits - self.temperature * log_value
        log_scale = math.lgamma(dim) + (dim - 1) * self.temperature.log()
        return log_scale + (score - log_value).sum(-1) - dim * score.logsumexp(-1)

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        tiny = torch.finfo(self.logits.dtype).tiny
        exponential = torch.empty(shape, dtype=self.logits.dtype, device=self.logits.device).exponential_()
        gumbel = -exponential.clamp(min=tiny).log()
        return ((self.logits + gumbel) / self.temperature).softmax(-1).clamp(min=tiny)
