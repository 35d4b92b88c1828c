"""Normal priors: the standard one, a learned one, and a mixture."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_vae.distributions import MixtureOfDiagonalNormals, shaped
from pyro_vae.family import positive
from pyro_vae.nets import Shape
from pyro_vae.priors.base import Prior


class StandardNormal(Prior):
    """z ~ Normal(0, I) in ``latent_dim`` dimensions.

    Args:
        latent_dim: dimensions of z, or its shape.

    Example:
        >>> StandardNormal(2)().log_prob(torch.zeros(2)).item()  # -log(2 pi)
        -1.8378770351409912
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: Shape) -> None:
        super().__init__(latent_dim)
        # Buffers, so that .to() and .double() move them; not in the state_dict, since they are no state.
        self.register_buffer("loc", torch.zeros(self.event_shape), persistent=False)
        self.register_buffer("scale", torch.ones(self.event_shape), persistent=False)

    def forward(self) -> TorchDistribution:
        return dist.Normal(self.loc, self.scale).to_event(len(self.event_shape))


class Normal(Prior):
    """z ~ Normal(loc, diag(scale^2)) with learned loc and scale, which start at 0 and 1.

    A VAE with this prior has as many optima as there are shifts and scalings of z; it is of use where the scale of z
    means something, as in a hierarchy.

    Args:
        latent_dim: dimensions of z, or its shape.

    Example:
        >>> sorted(Normal(2).state_dict())
        ['loc', 'log_scale']
    """

    def __init__(self, latent_dim: Shape) -> None:
        super().__init__(latent_dim)
        self.loc = nn.Parameter(torch.zeros(self.event_shape))
        self.log_scale = nn.Parameter(torch.zeros(self.event_shape))

    def forward(self) -> TorchDistribution:
        return dist.Normal(self.loc, positive(self.log_scale)).to_event(len(self.event_shape))


class MixtureOfNormals(Prior):
    """A mixture of diagonal Normals with learned weights and scales, and means that are learned or given.

    Args:
        latent_dim: dimensions of z, or its shape.
        num_components: number of components whose means are learned. They start as draws from Normal(0, I), which
            break the symmetry between them.
        loc: means that stay as they are, (num_components, latent_dim), in place of ``num_components``: encodings or
            for example principal components of some data.

    Raises:
        ValueError: both or none of ``num_components`` and ``loc``, or one of a wrong size.

    Example:
        >>> MixtureOfNormals(2, num_components=5)().event_shape
        torch.Size([2])
    """

    loc: Tensor

    def __init__(self, latent_dim: Shape, num_components: int | None = None, *, loc: Tensor | None = None) -> None:
        super().__init__(latent_dim)
        if (num_components is None) == (loc is None):
            raise ValueError(
                f"MixtureOfNormals: expected either num_components or loc; got {num_components} and "
                f"{None if loc is None else tuple(loc.shape)}. Give a number to learn the means, or the means."
            )
        if num_components is not None:
            if num_components < 1:
                raise ValueError(
                    f"MixtureOfNormals: expected num_components at least 1; got {num_components}. Give a positive "
                    "number."
                )
            self.loc = nn.Parameter(torch.randn(num_components, self.event_shape.numel()))
        elif loc is not None:
            if loc.shape[1:] != self.event_shape:
                raise ValueError(
                    "MixtureOfNormals: expected loc of shape (num_components, "
                    f"{', '.join(map(str, self.event_shape))}); got {tuple(loc.shape)}. "
                    "Give one row for each component."
                )
            self.register_buffer("loc", loc.detach().flatten(1).clone())
        self.logits = nn.Parameter(self.loc.new_zeros(len(self.loc)))
        self.log_scale = nn.Parameter(torch.zeros_like(self.loc, requires_grad=False))

    def forward(self) -> TorchDistribution:
        return shaped(MixtureOfDiagonalNormals(self.loc, positive(self.log_scale), self.logits), self.event_shape)
