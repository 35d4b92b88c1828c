"""Conditionals of proportions: vectors of positive numbers that sum to 1."""

from __future__ import annotations

from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.nn.functional import softplus

from pyro_vae.conditionals.base import Conditional
from pyro_vae.distributions import LogDirichlet, LogLogisticNormal, log_simplex
from pyro_vae.family import positive
from pyro_vae.nets import Body, Shape

MIN_CONCENTRATION = 1e-2
"""Below it nearly all draws are corners of the simplex to single precision."""


class Dirichlet(Conditional):
    """exp(z)|y ~ Dirichlet(concentration), concentration = 0.01 + softplus of the network's output.

    Reparameterized through its distribution function. z are the logarithms of the proportions, and exp(z) is what a
    likelihood is given; see :mod:`pyro_vae.distributions.log_space`.

    Args:
        body: network from y to features.
        latent_dim: number of proportions, at least 2.

    References:
        Joo, Lee, Park, Moon, "Dirichlet Variational Autoencoder", 2020, https://arxiv.org/abs/1901.02739
        Figurnov, Mohamed, Mnih, "Implicit Reparameterization Gradients", 2018, https://arxiv.org/abs/1805.08498

    Example:
        >>> import torch
        >>> from pyro_vae.nets import MLP
        >>> posterior = Dirichlet(MLP(4, [8]), 2)
        >>> q = posterior.distribution(concentration=torch.tensor([0.99, 2.99]).expm1().log())  # 1 and 3, by softplus
        >>> q.proportions.mean, q.rsample().exp().sum().round()
        (tensor([0.2500, 0.7500]), tensor(1.))
    """

    support = log_simplex

    def __init__(self, body: Body, latent_dim: Shape) -> None:
        super().__init__(body, latent_dim)
        self._check_vector(2)

    def parameter_shapes(self) -> dict[str, Size]:
        return {"concentration": self.event_shape}

    def distribution(self, *, concentration: Tensor) -> TorchDistribution:  # type: ignore[override]
        return LogDirichlet(MIN_CONCENTRATION + softplus(concentration))


class LogisticNormal(Conditional):
    """exp(z)|y = softmax((u, 0)), u ~ Normal(loc, diag(scale^2)) in one dimension less; reparameterized.

    z are the logarithms of the proportions, and exp(z) is what a likelihood is given; see
    :mod:`pyro_vae.distributions.log_space`.

    Args:
        body: network from y to features.
        latent_dim: number of proportions, at least 2.

    References:
        Srivastava, Sutton, "Autoencoding Variational Inference For Topic Models", 2017,
        https://arxiv.org/abs/1703.01488

    Example:
        >>> import torch
        >>> from pyro_vae.nets import MLP
        >>> posterior = LogisticNormal(MLP(4, [8]), 2)
        >>> z = posterior.distribution(loc=torch.zeros(1), log_scale=torch.zeros(1)).rsample(torch.Size([10_000]))
        >>> log_odds = z[:, 0] - z[:, 1]  # u
        >>> round(abs(log_odds.mean().item()), 1), round(log_odds.std().item(), 1)
        (0.0, 1.0)
    """

    support = log_simplex

    def __init__(self, body: Body, latent_dim: Shape) -> None:
        super().__init__(body, latent_dim)
        self._check_vector(2)

    def parameter_shapes(self) -> dict[str, Size]:
        free = Size((self.event_shape.numel() - 1,))
        return {"loc": free, "log_scale": free}

    def distribution(self, *, loc: Tensor, log_scale: Tensor) -> TorchDistribution:  # type: ignore[override]
        return LogLogisticNormal(loc, positive(log_scale).clamp(min=1e-3))
