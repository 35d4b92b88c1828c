"""Normalizing flows as Pyro distributions, and the layers of zuko that they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.types import _size

from pyro_vae import checks
from pyro_vae.distributions.zuko import flows, transforms


class NormalizingFlow(TorchDistribution):
    r"""z = f(u), u ~ base, with :math:`\log p(z) = \log p_u(u) - \log |\det df / du|`.

    For the transforms of zuko, which compute a value and its log-determinant in one pass, and any others. Beside
    ``pyro.contrib.zuko.ZukoToPyro`` it has a support, validates, and draws by ``sample`` too. The last draw keeps its
    log-density, so that scoring it inverts nothing, unless it was made without gradients and they are wanted now;
    scoring another value inverts f. It has no mean in closed form.

    Args:
        base: distribution of u, a reparameterized vector.
        transform: f, with ``call_and_ladj``; its inverse ``transform.inv`` is only used to score.

    References:
        Rezende, Mohamed, "Variational Inference with Normalizing Flows", 2015, https://arxiv.org/abs/1505.05770
        Rozet and others, "Zuko: Normalizing flows in PyTorch", 2022, https://github.com/probabilists/zuko

    Example:
        >>> import pyro.distributions as dist
        >>> base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> shift = dist.transforms.AffineTransform(torch.ones(2), 1.0, event_dim=1)
        >>> NormalizingFlow(base, shift).log_prob(torch.ones(2))  # the base's density at 0
        tensor(-1.8379)
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, base: TorchDistribution, transform: transforms.Transform, validate_args: bool | None = None
    ) -> None:
        self.base = base
        self.transform = transform
        self._draw: tuple[Tensor, Tensor, bool] | None = None
        super().__init__(base.batch_shape, base.event_shape, validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: object = None) -> NormalizingFlow:
        return NormalizingFlow(self.base.expand(batch_shape), self.transform, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        if self._draw is not None:
            draw, log_prob, differentiable = self._draw
            if value is draw and (differentiable or not torch.is_grad_enabled()):
                return log_prob
        u, log_det = self.transform.inv.call_and_ladj(value)
        return self.base.log_prob(u) + log_det

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        u = self.base.rsample(sample_shape)
        z, log_det = self.transform.call_and_ladj(u)
        self._draw = z, self.base.log_prob(u) - log_det, torch.is_grad_enabled()
        return z


class FlowLayers(nn.Module):
    """Autoregressive or coupling layers of zuko: ``forward(context) -> Transform`` of one pass, its inverse of several.

    Args:
        kind: how a dimension is transformed: scaled and shifted, or by a rational-quadratic spline on [-5, 5].
        dim: of the vectors transformed.
        num_layers: layers, between which the order of the dimensions reverses.
        hidden: width of each hidden layer of a layer's network.
        context_dim: size of the context; 0 for none.
        coupling: let only the second half of the dimensions depend, on the first, so that the inverse takes two passes
            and not ``dim``.
        num_bins: bins of each spline.

    Raises:
        ValueError: ``num_layers`` below 1.
    """

    def __init__(
        self,
        kind: Literal["affine", "spline"],
        dim: int,
        num_layers: int,
        hidden: Sequence[int],
        *,
        context_dim: int = 0,
        coupling: bool = False,
        num_bins: int = 8,
    ) -> None:
        super().__init__()
        num_layers = checks.whole("Flow", "num_layers", num_layers)
        hidden = [checks.whole("Flow", "hidden", width) for width in hidden]
        checks.whole("Flow", "num_bins", num_bins, 2)
        checks.whole("Flow", "context_dim", context_dim, 0)
        self.description = f"{kind}, dim={dim}, num_layers={num_layers}, hidden={tuple(hidden)}, coupling={coupling}"
        kinds = {"affine": flows.MAF, "spline": partial(flows.NSF, bins=num_bins)}
        passes = 2 if coupling else dim
        flow = kinds[kind](dim, context_dim, transforms=num_layers, hidden_features=tuple(hidden), passes=passes)
        self.transform = flow.transform

    def forward(self, context: Tensor | None = None) -> transforms.Transform:
        """The transform for a context of shape (\\*batch_shape, context_dim)."""
        return self.transform(context)

    def __repr__(self) -> str:
        # zuko's own would draw from torch's random number generator
        return f"FlowLayers({self.description})"
