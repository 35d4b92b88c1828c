"""Flows whose parameters the network makes for every x: Householder, planar and Sylvester.

Each transforms a draw of Normal(loc, diag(scale^2)); where the flow is the identity it is a diagonal Normal.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Transform

from pyro_vae.conditionals.base import Conditional
from pyro_vae.distributions import HouseholderTransform, NormalizingFlow, PlanarTransform, SylvesterTransform, shaped
from pyro_vae.distributions.zuko import transforms
from pyro_vae.family import positive
from pyro_vae.nets import Body, Shape


class TransformedNormal(Conditional):
    """A diagonal Normal, transformed by layers with parameters of their own for every row.

    Subclasses name the shapes of a layer's parameters in :meth:`layer_shapes` and build it in :meth:`layer`.

    Args:
        body: network from y to features.
        latent_dim: dimensions of z, or its shape.
        num_layers: of the flow, at least 1.

    Raises:
        ValueError: ``num_layers`` below 1.
    """

    def __init__(self, body: Body, latent_dim: Shape, num_layers: int) -> None:
        self.num_layers = num_layers  # read by parameter_shapes
        if num_layers < 1:
            raise ValueError(
                f"{type(self).__name__}: expected num_layers at least 1; got {num_layers}. Use DiagonalNormal for none."
            )
        super().__init__(body, latent_dim)

    def layer_shapes(self) -> dict[str, Size]:
        """Shapes of the parameters of one layer."""
        raise NotImplementedError

    def layer(self, **parameters: Tensor) -> Transform:
        """One layer, for parameters of shape (\\*lead, \\*shape)."""
        raise NotImplementedError

    def parameter_shapes(self) -> dict[str, Size]:
        layers = {name: Size((self.num_layers, *shape)) for name, shape in self.layer_shapes().items()}
        return {"loc": self.vector_shape, "log_scale": self.vector_shape, **layers}

    def distribution(self, *, loc: Tensor, log_scale: Tensor, **layers: Tensor) -> TorchDistribution:  # type: ignore[override]
        each = zip(*(value.unbind(loc.dim() - 1) for value in layers.values()), strict=True)
        flow = transforms.ComposedTransform(*(self.layer(**dict(zip(layers, values, strict=True))) for values in each))
        return shaped(NormalizingFlow(dist.Normal(loc, positive(log_scale)).to_event(1), flow), self.event_shape)


class Householder(TransformedNormal):
    """Reflections of a diagonal Normal: a Normal whose covariance has any axes, once there are enough of them.

    Args:
        body: network from y to features.
        latent_dim: dimensions of z, or its shape.
        num_layers: reflections, one after the other.

    References:
        Tomczak, Welling, "Improving Variational Auto-Encoders using Householder Flow", 2016,
        https://arxiv.org/abs/1611.09630

    Example:
        >>> from pyro_vae.nets import MLP
        >>> posterior = Householder(MLP(4, [8]), 2, num_layers=1)
        >>> loc, narrow, normal = torch.tensor([1.0, 2.0]), torch.full((2,), -16.0), torch.tensor([[1.0, -1.0]])
        >>> posterior.distribution(loc=loc, log_scale=narrow, normal=normal).sample().round()  # a swap
        tensor([2., 1.])
    """

    def __init__(self, body: Body, latent_dim: Shape, num_layers: int = 4) -> None:
        super().__init__(body, latent_dim, num_layers)

    def layer_shapes(self) -> dict[str, Size]:
        return {"normal": self.vector_shape}

    def layer(self, *, normal: Tensor) -> Transform:  # type: ignore[override]
        return HouseholderTransform(normal.unsqueeze(-2))


class Planar(TransformedNormal):
    """Planar layers z + u tanh(w'z + b): each bends space along one direction.

    Args:
        body: network from y to features.
        latent_dim: dimensions of z, or its shape.
        num_layers: of them.

    References:
        Rezende, Mohamed, "Variational Inference with Normalizing Flows", 2015, https://arxiv.org/abs/1505.05770

    Example:
        >>> from pyro_vae.nets import MLP
        >>> posterior = Planar(MLP(4, [8]), 2, num_layers=1)
        >>> zero, narrow, bias = torch.zeros(2), torch.full((2,), -16.0), torch.tensor([[100.0]])
        >>> layer = {"bias": bias, "u": torch.tensor([[2.0, 3.0]]), "w": torch.tensor([[0.0, 100.0]])}
        >>> posterior.distribution(loc=zero, log_scale=narrow, **layer).sample().round()  # u, where tanh is 1
        tensor([2., 3.])
    """

    def __init__(self, body: Body, latent_dim: Shape, num_layers: int = 4) -> None:
        super().__init__(body, latent_dim, num_layers)

    def layer_shapes(self) -> dict[str, Size]:
        return {"bias": Size((1,)), "u": self.vector_shape, "w": self.vector_shape}

    def layer(self, *, bias: Tensor, u: Tensor, w: Tensor) -> Transform:  # type: ignore[override]
        return PlanarTransform((bias, u, w))


class Sylvester(TransformedNormal):
    """Sylvester layers z + Q R tanh(S Q'z + b): planar layers in all directions at once.

    Q is a product of Householder reflections, R and S are triangular. The density at values other than draws is found
    one dimension after the other.

    Args:
        body: network from y to features.
        latent_dim: dimensions of z, or its shape.
        num_layers: of them.
        num_reflections: that Q is the product of, at least 1.

    References:
        van den Berg, Hasenclever, Tomczak, Welling, "Sylvester Normalizing Flows for Variational Inference", 2018,
        https://arxiv.org/abs/1803.05649

    Example:
        >>> from pyro_vae.nets import MLP
        >>> posterior = Sylvester(MLP(4, [8]), 2, num_layers=1, num_reflections=1)
        >>> layer = {"triangles": torch.tensor([[[0.0, 3.0], [0.0, 0.0]]]), "diagonals": torch.full((1, 2, 2), 100.0)}
        >>> layer |= {"bias": torch.full((1, 2), 100.0), "reflections": torch.tensor([[[1.0, -1.0]]])}  # Q is a swap
        >>> zero, narrow = torch.zeros(2), torch.full((2,), -16.0)
        >>> posterior.distribution(loc=zero, log_scale=narrow, **layer).sample().round()  # Q R 1, where tanh is 1
        tensor([1., 4.])
    """

    def __init__(self, body: Body, latent_dim: Shape, num_layers: int = 4, num_reflections: int = 4) -> None:
        self.num_reflections = num_reflections  # read by parameter_shapes
        if num_reflections < 1:
            raise ValueError(
                f"Sylvester: expected num_reflections at least 1; got {num_reflections}. Give a positive number."
            )
        super().__init__(body, latent_dim, num_layers)

    def layer_shapes(self) -> dict[str, Size]:
        (dim,) = self.vector_shape
        return {
            "triangles": Size((dim, dim)),
            "diagonals": Size((2, dim)),
            "bias": Size((dim,)),
            "reflections": Size((self.num_reflections, dim)),
        }

    def layer(  # type: ignore[override]
        self, *, triangles: Tensor, diagonals: Tensor, bias: Tensor, reflections: Tensor
    ) -> Transform:
        diagonal = torch.diag_embed(diagonals.tanh())
        r = triangles.triu(1) + diagonal[..., 0, :, :]
        s = triangles.mT.triu(1) + diagonal[..., 1, :, :]
        return SylvesterTransform(r, s, bias, reflections)
