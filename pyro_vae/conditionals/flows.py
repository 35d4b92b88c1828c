"""Normalizing flows conditioned on x, from zuko.

Each is z = loc + scale * f(eps; h) with noise eps ~ Normal(0, I). The network makes loc, scale and a context h, a
vector that every layer of f takes beside its own input. The flow acts on standardized noise, so that splines have all
of it in their range, and a flow that is the identity is a diagonal Normal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import AffineTransform

from pyro_vae.conditionals.base import Conditional
from pyro_vae.distributions import shaped
from pyro_vae.distributions.normalizing_flow import FlowLayers, NormalizingFlow
from pyro_vae.distributions.zuko import transforms
from pyro_vae.family import positive
from pyro_vae.nets import Body, Shape


class FlowConditional(Conditional):
    """z = loc + scale * f(eps; h), whose draws and their densities take a single pass through f.

    Args:
        body: network from y to features.
        latent_dim: dimensions of z, or its shape.
        num_layers: of f.
        hidden: width of each hidden layer of a layer's network.
        context_dim: size of h.
        options: of :class:`~pyro_vae.distributions.normalizing_flow.FlowLayers`.
    """

    kind: Literal["affine", "spline"] = "affine"
    """How a layer transforms a dimension; see :class:`~pyro_vae.distributions.normalizing_flow.FlowLayers`."""
    coupling: bool = True
    """Coupling layers, with an inverse of two passes, and not autoregressive ones."""

    def __init__(
        self,
        body: Body,
        latent_dim: Shape,
        num_layers: int,
        hidden: Sequence[int],
        *,
        context_dim: int,
        **options: int,
    ) -> None:
        self.context_dim = context_dim  # read by parameter_shapes
        super().__init__(body, latent_dim)
        dims = self.event_shape.numel()
        self.layers = FlowLayers(
            self.kind, dims, num_layers, hidden, context_dim=context_dim, coupling=self.coupling, **options
        )

    def parameter_shapes(self) -> dict[str, Size]:
        return {"loc": self.vector_shape, "log_scale": self.vector_shape, "context": Size((self.context_dim,))}

    def distribution(self, *, loc: Tensor, log_scale: Tensor, context: Tensor) -> TorchDistribution:  # type: ignore[override]
        noise = dist.Normal(torch.zeros_like(loc), torch.ones_like(loc)).to_event(1)
        affine = AffineTransform(loc, positive(log_scale), event_dim=1)
        flow = NormalizingFlow(noise, transforms.ComposedTransform(self.layers(context), affine))
        return shaped(flow, self.event_shape)


class InverseAutoregressiveFlow(FlowConditional):
    """Affine autoregressive layers, every dimension scaled and shifted by functions of those before it and of x.

    Draws and their densities take one pass. The density at any other value (as STL and DReG gradients need it) takes
    ``latent_dim`` passes, one after the other.

    Args:
        body: network from y to features.
        latent_dim: dimensions of z, or its shape.
        num_layers: autoregressive layers; the order of the dimensions reverses from one to the next.
        hidden: width of each hidden layer of a layer's network.
        context_dim: size of the vector through which the layers see x.

    References:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling, "Improved Variational Inference with Inverse
        Autoregressive Flow", 2016, https://arxiv.org/abs/1606.04934

    Example:
        >>> from pyro_vae.nets import MLP
        >>> InverseAutoregressiveFlow(MLP((1, 4, 4), [8]), 2)(torch.zeros(3, 1, 4, 4)).rsample().shape
        torch.Size([3, 2])
    """

    coupling = False

    def __init__(
        self,
        body: Body,
        latent_dim: Shape,
        num_layers: int = 2,
        hidden: Sequence[int] = (64, 64),
        *,
        context_dim: int = 64,
    ) -> None:
        super().__init__(body, latent_dim, num_layers, hidden, context_dim=context_dim)


class RealNVP(FlowConditional):
    """Affine coupling layers: half of the dimensions is scaled and shifted by functions of the other half and of x.

    Draws and their densities take one pass, the density at any other value two.

    Args:
        body: network from y to features.
        latent_dim: dimensions of z, or its shape.
        num_layers: coupling layers; halves change places from one to the next.
        hidden: width of each hidden layer of a layer's network.
        context_dim: size of the vector through which the layers see x.

    References:
        Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, https://arxiv.org/abs/1605.08803

    Example:
        >>> from pyro_vae.nets import MLP
        >>> q = RealNVP(MLP(4, [8]), 2)(torch.zeros(3, 4))
        >>> z = q.rsample()
        >>> bool(torch.allclose(q.log_prob(z), q.log_prob(z.clone()), atol=1e-3))  # as drawn, and through the inverse
        True
    """

    def __init__(
        self,
        body: Body,
        latent_dim: Shape,
        num_layers: int = 4,
        hidden: Sequence[int] = (64, 64),
        *,
        context_dim: int = 64,
    ) -> None:
        super().__init__(body, latent_dim, num_layers, hidden, context_dim=context_dim)


class NeuralSpline(FlowConditional):
    """Coupling layers of monotonic rational-quadratic splines on [-5, 5], given the other half and x.

    Draws and their densities take one pass, the density at any other value two.

    Args:
        body: network from y to features.
        latent_dim: dimensions of z, or its shape.
        num_layers: coupling layers; halves change places from one to the next.
        hidden: width of each hidden layer of a layer's network.
        num_bins: bins of each spline.
        context_dim: size of the vector through which the layers see x.

    References:
        Durkan, Bekasov, Murray, Papamakarios, "Neural Spline Flows", 2019, https://arxiv.org/abs/1906.04032

    Example:
        >>> from pyro_vae.nets import MLP
        >>> q = NeuralSpline(MLP(4, [8]), 2)(torch.zeros(3, 4))
        >>> z = q.rsample()
        >>> bool(torch.allclose(q.log_prob(z), q.log_prob(z.clone()), atol=1e-3))  # as drawn, and through the inverse
        True
    """

    kind = "spline"

    def __init__(
        self,
        body: Body,
        latent_dim: Shape,
        num_layers: int = 4,
        hidden: Sequence[int] = (64, 64),
        num_bins: int = 8,
        *,
        context_dim: int = 64,
    ) -> None:
        super().__init__(body, latent_dim, num_layers, hidden, context_dim=context_dim, num_bins=num_bins)
