"""Priors of proportions: vectors of positive numbers that sum to 1."""

from __future__ import annotations

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_vae.distributions import LogDirichlet, LogLogisticNormal, log_simplex
from pyro_vae.priors.base import Prior


class Dirichlet(Prior):
    r"""exp(z) ~ Dirichlet(:math:`\alpha, \dots, \alpha`): z are the logarithms of the proportions.

    Args:
        latent_dim: number of proportions, at least 2.
        concentration: :math:`\alpha > 0`, without unit; 1 is uniform, below it most proportions are near 0.

    Raises:
        ValueError: a ``latent_dim`` below 2, or a ``concentration`` that is not positive.

    Example:
        >>> Dirichlet(3)().proportions.mean
        tensor([0.3333, 0.3333, 0.3333])
    """

    support = log_simplex
    concentration: Tensor

    def __init__(self, latent_dim: int, concentration: float = 1.0) -> None:
        _check("Dirichlet prior", latent_dim, "concentration", concentration)
        super().__init__(latent_dim)
        self.register_buffer("concentration", torch.full((latent_dim,), concentration), persistent=False)

    def forward(self) -> TorchDistribution:
        return LogDirichlet(self.concentration)


class LogisticNormal(Prior):
    r"""exp(z) = softmax((y, 0)), y ~ Normal(0, s^2 I): proportions of which several may be rare together.

    Args:
        latent_dim: number of proportions, at least 2.
        scale: s, in nats: standard deviation of the log-ratios to the last proportion.

    Raises:
        ValueError: a ``latent_dim`` below 2, or a ``scale`` that is not positive.

    References:
        Aitchison, Shen, "Logistic-normal distributions: some properties and uses", 1980,
        https://doi.org/10.1093/biomet/67.2.261
        Srivastava, Sutton, "Autoencoding Variational Inference For Topic Models", 2017,
        https://arxiv.org/abs/1703.01488

    Example:
        >>> LogisticNormal(3)().sample().exp().sum().round(decimals=3)
        tensor(1.)
    """

    support = log_simplex
    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int, scale: float = 1.0) -> None:
        _check("LogisticNormal prior", latent_dim, "scale", scale)
        super().__init__(latent_dim)
        self.register_buffer("loc", torch.zeros(latent_dim - 1), persistent=False)
        self.register_buffer("scale", torch.full((latent_dim - 1,), scale), persistent=False)

    def forward(self) -> TorchDistribution:
        return LogLogisticNormal(self.loc, self.scale)


def _check(subject: str, latent_dim: int, name: str, value: float) -> None:
    if latent_dim < 2:
        raise ValueError(f"{subject}: expected latent_dim at least 2; got {latent_dim}. One proportion is always 1.")
    if not value > 0:
        raise ValueError(f"{subject}: expected {name} above 0; got {value}. Give a positive number.")
