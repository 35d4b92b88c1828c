"""Uniform priors of discrete latents, and their relaxations to continuous ones."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_vae.distributions import LogOddsRelaxedBernoulli, LogRelaxedOneHotCategorical, log_odds, log_simplex
from pyro_vae.distributions import OneHotCategorical as OneHotCategoricalDistribution
from pyro_vae.nets import Shape
from pyro_vae.priors.base import Prior


class _Uniform(Prior):
    """Every outcome alike: logits of 0."""

    logits: Tensor

    def __init__(self, latent_dim: Shape) -> None:
        super().__init__(latent_dim)
        self.register_buffer("logits", torch.zeros(self.event_shape), persistent=False)


class _Relaxed(_Uniform):
    """With a temperature, in the ``state_dict``."""

    temperature: Tensor

    def __init__(self, latent_dim: Shape, temperature: float = 0.5) -> None:
        super().__init__(latent_dim)
        if not temperature > 0:
            raise ValueError(
                f"{type(self).__name__} prior: expected temperature above 0; got {temperature}. Use the discrete prior "
                "for the limit at 0."
            )
        self.register_buffer("temperature", torch.tensor(float(temperature)))


class Bernoulli(_Uniform):
    """Independent fair bits.

    Args:
        latent_dim: number of bits, or their shape.

    Example:
        >>> Bernoulli(2)().log_prob(torch.tensor([0.0, 1.0]))  # -2 log 2
        tensor(-1.3863)
    """

    support = constraints.boolean

    def forward(self) -> TorchDistribution:
        return dist.Bernoulli(logits=self.logits).to_event(len(self.event_shape))


class OneHotCategorical(_Uniform):
    """Independent one-hot vectors, each of its categories alike.

    Args:
        latent_dim: number of categories; or (number of vectors, number of categories), and further dims in front.

    Example:
        >>> OneHotCategorical((20, 10))().sample().sum(-1).unique()
        tensor([1.])
    """

    support = constraints.one_hot

    def forward(self) -> TorchDistribution:
        return OneHotCategoricalDistribution(logits=self.logits).to_event(len(self.event_shape) - 1)


class RelaxedBernoulli(_Relaxed):
    """Log-odds z of numbers sigmoid(z) in (0, 1), a relaxation of bits: Logistic noise divided by a temperature.

    Args:
        latent_dim: number of elements, or their shape.
        temperature: positive, without unit; a buffer, so that ``prior.temperature.fill_(...)`` changes it at any step.

    References:
        Maddison, Mnih, Teh, "The Concrete Distribution", 2017, https://arxiv.org/abs/1611.00712

    Example:
        >>> density = RelaxedBernoulli(2, temperature=1.0)().log_prob(torch.tensor([0.3, 0.9]).logit()).exp()
        >>> round(density.item(), 4)  # of uniform y: the product of y (1 - y)
        0.0189
    """

    support = log_odds

    def forward(self) -> TorchDistribution:
        return LogOddsRelaxedBernoulli(self.temperature, self.logits).to_event(len(self.event_shape))


class RelaxedOneHotCategorical(_Relaxed):
    """Logarithms z of vectors on the simplex, a relaxation of one-hot vectors: Gumbel-softmax or Concrete.

    Args:
        latent_dim: number of categories; or (number of vectors, number of categories), and further dims in front.
        temperature: positive, without unit; a buffer, so that ``prior.temperature.fill_(...)`` changes it at any step.

    References:
        Maddison, Mnih, Teh, "The Concrete Distribution", 2017, https://arxiv.org/abs/1611.00712
        Jang, Gu, Poole, "Categorical Reparameterization with Gumbel-Softmax", 2017, https://arxiv.org/abs/1611.01144

    Example:
        >>> RelaxedOneHotCategorical((20, 10))().sample().exp().sum(-1).round(decimals=3).unique()
        tensor([1.])
    """

    support = log_simplex

    def forward(self) -> TorchDistribution:
        relaxed = LogRelaxedOneHotCategorical(self.temperature, self.logits)
        return relaxed.to_event(len(self.event_shape) - 1)
