"""Laplace prior."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_vae import checks
from pyro_vae.nets import Shape
from pyro_vae.priors.base import Prior


class Laplace(Prior):
    r"""Independent :math:`p(z_i) = e^{-|z_i| / s} / (2 s)`: sparser than a Normal, and not rotation invariant.

    Args:
        latent_dim: dimensions of z, or its shape.
        scale: s, in the units of z.

    Raises:
        ValueError: ``scale`` is not positive.

    Example:
        >>> Laplace(2)().log_prob(torch.zeros(2)).item()  # -2 log 2
        -1.3862943649291992
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: Shape, scale: float = 1.0) -> None:
        super().__init__(latent_dim)
        checks.number("Laplace prior", "scale", scale, above=0)
        self.register_buffer("loc", torch.zeros(self.event_shape), persistent=False)
        self.register_buffer("scale", torch.full(self.event_shape, float(scale)), persistent=False)

    def forward(self) -> TorchDistribution:
        return dist.Laplace(self.loc, self.scale).to_event(len(self.event_shape))
