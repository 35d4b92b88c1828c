"""Normal priors: the standard one and a learned mixture."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_vae.priors.base import Prior


class StandardNormal(Prior):
    """z ~ Normal(0, I) in ``latent_dim`` dimensions.

    Example:
        >>> StandardNormal(2)().log_prob(torch.zeros(2)).item()  # -log(2 pi)
        -1.8378770351409912
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        # Buffers, so that .to() and .double() move them; not in the state_dict, since they are no state.
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> TorchDistribution:
        return dist.Normal(self.loc, self.scale).to_event(1)


class MixtureOfNormals(Prior):
    """A mixture of diagonal Normals with learned weights, locations and scales.

    Args:
        latent_dim: dimensions of z.
        num_components: number of mixture components; their locations start as draws from Normal(0, I), which break
            the symmetry between them.

    Example:
        >>> MixtureOfNormals(2, num_components=5)().event_shape
        torch.Size([2])
    """

    def __init__(self, latent_dim: int, num_components: int) -> None:
        super().__init__(latent_dim)
        if num_components < 1:
            raise ValueError(
                f"MixtureOfNormals: expected num_components at least 1; got {num_components}. Give a positive number."
            )
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(torch.randn(num_components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(num_components, latent_dim))

    def forward(self) -> TorchDistribution:
        components = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)
