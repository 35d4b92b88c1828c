"""The uniform prior on the sphere."""

from __future__ import annotations

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_vae.distributions import HypersphericalUniform as HypersphericalUniformDistribution
from pyro_vae.priors.base import Prior


class HypersphericalUniform(Prior):
    """z uniform on the unit sphere of ``latent_dim``-dimensional vectors.

    Args:
        latent_dim: dimensions of the vectors, one more than the sphere's own; at least 2.

    References:
        Davidson, Falorsi, De Cao, Kipf, Tomczak, "Hyperspherical Variational Auto-Encoders", 2018,
        https://arxiv.org/abs/1804.00891

    Example:
        >>> round(HypersphericalUniform(3)().sample().norm().item(), 6)
        1.0
    """

    support = constraints.sphere
    zero: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    def forward(self) -> TorchDistribution:
        return HypersphericalUniformDistribution(self.event_shape[0], like=self.zero)
