"""Normal conditionals: q(z|x) with a covariance that the network makes."""

from __future__ import annotations

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor

from pyro_vae.conditionals.base import Conditional


class DiagonalNormal(Conditional):
    r"""z|y ~ Normal(loc(y), diag(scale(y)^2)), scale = exp(log_scale): the mean-field guide of most papers.

    Reparameterised, z = loc + scale * eps.

    Args:
        body: network from y to features.
        latent_dim: dimensions of z.

    References:
        Kingma, Welling, "Auto-Encoding Variational Bayes", 2014, https://arxiv.org/abs/1312.6114

    Example:
        >>> import torch
        >>> from pyro_vae.nets import MLP
        >>> DiagonalNormal(MLP((1, 4, 4), [8]), 2)(torch.zeros(3, 1, 4, 4)).rsample().shape
        torch.Size([3, 2])
    """

    def parameter_shapes(self) -> dict[str, Size]:
        return {"loc": self.event_shape, "log_scale": self.event_shape}

    def distribution(self, *, loc: Tensor, log_scale: Tensor) -> TorchDistribution:  # type: ignore[override]
        return dist.Normal(loc, log_scale.exp()).to_event(1)
