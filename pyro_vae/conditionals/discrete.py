"""Conditionals of discrete latents, and their relaxations to continuous ones.

The discrete ones have no pathwise gradient: estimators that need one refuse them, and score-function estimators or
enumeration serve.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor

from pyro_vae.conditionals.base import Conditional
from pyro_vae.distributions import LogOddsRelaxedBernoulli, LogRelaxedOneHotCategorical, log_odds, log_simplex
from pyro_vae.distributions import OneHotCategorical as OneHotCategoricalDistribution
from pyro_vae.nets import Body, Shape


class _Logits(Conditional):
    """The network makes one logit for each element of z."""

    def parameter_shapes(self) -> dict[str, Size]:
        return {"logits": self.event_shape}


class _Relaxed(_Logits):
    """With a temperature, in the ``state_dict``."""

    temperature: Tensor

    def __init__(self, body: Body, latent_dim: Shape, temperature: float = 0.5) -> None:
        super().__init__(body, latent_dim)
        if not temperature > 0:
            raise ValueError(
                f"{type(self).__name__}: expected temperature above 0; got {temperature}. Use the discrete conditional "
                "for the limit at 0."
            )
        self.register_buffer("temperature", torch.tensor(float(temperature)))


class Bernoulli(_Logits):
    """Independent bits.

    Args:
        body: network from y to features.
        latent_dim: number of bits, or their shape.

    References:
        Mnih, Gregor, "Neural Variational Inference and Learning in Belief Networks", 2014,
        https://arxiv.org/abs/1402.0030

    Example:
        >>> from pyro_vae.nets import MLP
        >>> q = Bernoulli(MLP(4, [8]), 2).distribution(logits=torch.tensor([0.0, 1.0986]))  # log-odds 0 and log 3
        >>> q.mean, q.log_prob(torch.tensor([1.0, 1.0])).exp()
        (tensor([0.5000, 0.7500]), tensor(0.3750))
    """

    support = constraints.boolean

    def distribution(self, *, logits: Tensor) -> TorchDistribution:  # type: ignore[override]
        return dist.Bernoulli(logits=logits).to_event(len(self.event_shape))


class OneHotCategorical(_Logits):
    """Independent one-hot vectors.

    Args:
        body: network from y to features.
        latent_dim: number of categories; or (number of vectors, number of categories), and further dims in front.

    Example:
        >>> from pyro_vae.nets import MLP
        >>> OneHotCategorical(MLP(4, [8]), (20, 10))(torch.zeros(3, 4)).sample().sum(-1).unique()
        tensor([1.])
    """

    support = constraints.one_hot

    def distribution(self, *, logits: Tensor) -> TorchDistribution:  # type: ignore[override]
        return OneHotCategoricalDistribution(logits=logits).to_event(len(self.event_shape) - 1)


class RelaxedBernoulli(_Relaxed):
    """Log-odds z of numbers sigmoid(z) in (0, 1), a reparameterized relaxation of bits.

    sigmoid(z) is what a likelihood is given; see :mod:`pyro_vae.distributions.log_space`.

    Args:
        body: network from y to features.
        latent_dim: number of elements, or their shape.
        temperature: positive, without unit; a buffer, so that ``posterior.temperature.fill_(...)`` changes it at any
            step.

    References:
        Maddison, Mnih, Teh, "The Concrete Distribution", 2017, https://arxiv.org/abs/1611.00712

    Example:
        >>> from pyro_vae.nets import MLP
        >>> posterior = RelaxedBernoulli(MLP(4, [8]), 1, temperature=0.01)
        >>> z = posterior.distribution(logits=torch.tensor([2.0])).rsample(torch.Size([10_000]))
        >>> round(z.sigmoid().mean().item(), 1)  # cold, numbers are nearly bits, of probability sigmoid(2) = 0.88
        0.9
    """

    support = log_odds

    def distribution(self, *, logits: Tensor) -> TorchDistribution:  # type: ignore[override]
        return LogOddsRelaxedBernoulli(self.temperature, logits).to_event(len(self.event_shape))


class RelaxedOneHotCategorical(_Relaxed):
    """Logarithms z of vectors on the simplex, a reparameterized relaxation of one-hot vectors.

    Gumbel-softmax or Concrete. exp(z) is what a likelihood is given; see :mod:`pyro_vae.distributions.log_space`.

    Args:
        body: network from y to features.
        latent_dim: number of categories; or (number of vectors, number of categories), and further dims in front.
        temperature: positive, without unit; a buffer, so that ``posterior.temperature.fill_(...)`` changes it at any
            step.

    References:
        Maddison, Mnih, Teh, "The Concrete Distribution", 2017, https://arxiv.org/abs/1611.00712
        Jang, Gu, Poole, "Categorical Reparameterization with Gumbel-Softmax", 2017, https://arxiv.org/abs/1611.01144

    Example:
        >>> from pyro_vae.nets import MLP
        >>> posterior = RelaxedOneHotCategorical(MLP(4, [8]), 3, temperature=0.01)
        >>> z = posterior.distribution(logits=torch.tensor([0.1, 0.6, 0.3]).log()).rsample(torch.Size([10_000]))
        >>> [round(share, 1) for share in z.exp().mean(0).tolist()]  # cold, vectors are nearly one-hot
        [0.1, 0.6, 0.3]
    """

    support = log_simplex

    def distribution(self, *, logits: Tensor) -> TorchDistribution:  # type: ignore[override]
        relaxed = LogRelaxedOneHotCategorical(self.temperature, logits)
        return relaxed.to_event(len(self.event_shape) - 1)
