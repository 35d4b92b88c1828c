"""Relaxations of discrete latents, in log space, see :mod:`pyro_vae.distributions.log_space`."""

from __future__ import annotations

import math

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.nn.functional import softplus
from torch.types import _size

from pyro_vae.distributions.log_space import log_odds, log_simplex


class LogRelaxedOneHotCategorical(TorchDistribution):
    r"""log y with y = softmax((logits + Gumbel noise) / temperature): the ExpConcrete distribution.

    .. math::  \log p(\log y) = \log\Gamma(d) + (d - 1) \log\tau + \sum_i s_i - d \log \sum_i e^{s_i},
               \quad s_i = l_i - \tau \log y_i

    with logits l and temperature :math:`\tau`: a density of the log-ratios of y. It is exact at its own draws at any
    temperature and logits, also in single precision. The mean has no closed form.

    Args:
        temperature: positive, without unit; a scalar.
        logits: unnormalized log-probabilities, (\*batch_shape, d).

    References:
        Maddison, Mnih, Teh, "The Concrete Distribution", 2017, appendix C.3, https://arxiv.org/abs/1611.00712
        Jang, Gu, Poole, "Categorical Reparameterization with Gumbel-Softmax", 2017, https://arxiv.org/abs/1611.01144

    Example:
        >>> q = LogRelaxedOneHotCategorical(torch.tensor(1.0), torch.zeros(2))
        >>> y = torch.tensor([0.3, 0.7])  # uniform: its log-ratio has the density y_1 y_2
        >>> round(q.log_prob(y.log()).exp().item(), 6)
        0.21
    """

    arg_constraints = {"temperature": constraints.positive, "logits": constraints.real_vector}
    support = log_simplex
    has_rsample = True

    def __init__(self, temperature: Tensor, logits: Tensor, validate_args: bool | None = None) -> None:
        self.temperature = temperature
        self.logits = logits
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: object = None) -> LogRelaxedOneHotCategorical:
        logits = self.logits.expand(Size(batch_shape) + self.event_shape)
        return LogRelaxedOneHotCategorical(self.temperature, logits, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        dim = self.event_shape[0]
        score = (self.logits - self.temperature * value).log_softmax(-1)
        return math.lgamma(dim) + (dim - 1) * self.temperature.log() + score.sum(-1)

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        gumbel = -_log_exponential(self._extended_shape(sample_shape), self.logits)
        return ((self.logits + gumbel) / self.temperature).log_softmax(-1)


class LogOddsRelaxedBernoulli(TorchDistribution):
    r"""Log-odds l of y = sigmoid((logits + Logistic noise) / temperature): l is Logistic(logits / t, 1 / t).

    .. math::  \log p(l) = \log t + a - 2 \log(1 + e^a), \quad a = \mathrm{logits} - t\,l

    Exact at its own draws at any temperature and logits, where densities of y itself lose 1 - y.

    Args:
        temperature: t, positive, without unit; a scalar.
        logits: log-odds of the relaxed bit, of shape ``batch_shape``.

    References:
        Maddison, Mnih, Teh, "The Concrete Distribution", 2017, appendix B, https://arxiv.org/abs/1611.00712

    Example:
        >>> q = LogOddsRelaxedBernoulli(torch.tensor(1.0), torch.tensor(0.0))
        >>> round(q.log_prob(torch.tensor(0.3).logit()).exp().item(), 6)  # of a uniform y: y (1 - y)
        0.21
    """

    arg_constraints = {"temperature": constraints.positive, "logits": constraints.real}
    support = log_odds
    has_rsample = True

    def __init__(self, temperature: Tensor, logits: Tensor, validate_args: bool | None = None) -> None:
        self.temperature = temperature
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: object = None) -> LogOddsRelaxedBernoulli:
        return LogOddsRelaxedBernoulli(self.temperature, self.logits.expand(Size(batch_shape)), self._validate_args)

    @property
    def mean(self) -> Tensor:
        """Of the log-odds."""
        return self.logits / self.temperature

    @property
    def variance(self) -> Tensor:
        """Of the log-odds."""
        return (math.pi**2 / 3 / self.temperature**2).expand(self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        a = self.logits - self.temperature * value
        return self.temperature.log() - softplus(-a) - softplus(a)

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        # the logarithm of a ratio of exponentials has both tails; logit of a uniform number ends at 16
        noise = _log_exponential(shape, self.logits) - _log_exponential(shape, self.logits)
        return (self.logits + noise) / self.temperature


def _log_exponential(shape: Size, like: Tensor) -> Tensor:
    exponential = torch.empty(shape, dtype=like.dtype, device=like.device).exponential_()
    return exponential.clamp(min=torch.finfo(like.dtype).tiny).log()
