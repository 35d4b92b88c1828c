"""Normalizing flows as priors, from zuko. All of them evaluate the density of a batch of z in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_vae.distributions import shaped
from pyro_vae.distributions.normalizing_flow import FlowLayers, NormalizingFlow
from pyro_vae.nets import Shape, as_size
from pyro_vae.priors.base import Prior


class FlowPrior(Prior):
    """z = f(u), u ~ Normal(0, I), for layers f whose *inverse* is a single pass.

    Args:
        latent_dim: dimensions of z, or its shape.
        layers: from z to u.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: Shape, layers: FlowLayers) -> None:
        super().__init__(latent_dim)
        self.layers = layers
        self.register_buffer("loc", torch.zeros(self.event_shape.numel()), persistent=False)
        self.register_buffer("scale", torch.ones(self.event_shape.numel()), persistent=False)

    def forward(self) -> TorchDistribution:
        flow = NormalizingFlow(dist.Normal(self.loc, self.scale).to_event(1), self.layers().inv)
        return shaped(flow, self.event_shape)


class RealNVP(FlowPrior):
    """Affine coupling layers: half of z is scaled and shifted by functions of the other half, in turn.

    Density and draws take one and two passes. (As in zuko's coupling by masks, the other half is scaled and shifted
    too, by constants.)

    Args:
        latent_dim: dimensions of z, or its shape.
        num_layers: coupling layers; halves change places from one to the next.
        hidden: width of each hidden layer of the networks.

    References:
        Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, https://arxiv.org/abs/1605.08803

    Example:
        >>> RealNVP(2)().log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(self, latent_dim: Shape, num_layers: int = 4, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__(
            latent_dim, FlowLayers("affine", as_size(latent_dim).numel(), num_layers, hidden, coupling=True)
        )


class NeuralSpline(FlowPrior):
    """Coupling layers of monotonic rational-quadratic splines on [-5, 5], the identity outside.

    Density and draws take one and two passes.

    Args:
        latent_dim: dimensions of z, or its shape.
        num_layers: coupling layers; halves change places from one to the next.
        hidden: width of each hidden layer of the networks.
        num_bins: bins of each spline.

    References:
        Durkan, Bekasov, Murray, Papamakarios, "Neural Spline Flows", 2019, https://arxiv.org/abs/1906.04032

    Example:
        >>> NeuralSpline(2)().log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(
        self, latent_dim: Shape, num_layers: int = 4, hidden: Sequence[int] = (64, 64), num_bins: int = 8
    ) -> None:
        layers = FlowLayers("spline", as_size(latent_dim).numel(), num_layers, hidden, coupling=True, num_bins=num_bins)
        super().__init__(latent_dim, layers)


class MaskedAutoregressive(FlowPrior):
    """Affine autoregressive layers: every dimension of z is scaled and shifted by functions of those before it.

    The density takes one pass; draws take ``latent_dim`` passes, one after the other.

    Args:
        latent_dim: dimensions of z, or its shape.
        num_layers: autoregressive layers; the order of the dimensions reverses from one to the next.
        hidden: width of each hidden layer of the networks.

    References:
        Papamakarios, Pavlakou, Murray, "Masked Autoregressive Flow for Density Estimation", 2017,
        https://arxiv.org/abs/1705.07057

    Example:
        >>> MaskedAutoregressive(2)().log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(self, latent_dim: Shape, num_layers: int = 4, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__(latent_dim, FlowLayers("affine", as_size(latent_dim).numel(), num_layers, hidden))
