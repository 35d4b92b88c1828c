"""Normalising flows as Pyro distributions."""

from __future__ import annotations

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.types import _size

from pyro_vae.distributions.zuko import transforms


class NormalizingFlow(TorchDistribution):
    r"""z = f(u), u ~ base, with :math:`\log p(z) = \log p_u(u) - \log |\det df / du|`.

    For the transforms of zuko, which compute a value and its log-determinant in one pass. Beside
    ``pyro.contrib.zuko.ZukoToPyro`` it has a support, validates, and draws by ``sample`` too. The last differentiable
    draw keeps its log-density, so that scoring it inverts nothing; scoring another value inverts f. It has no mean in
    closed form.

    Args:
        base: distribution of u, a reparameterised vector.
        transform: f, with ``call_and_ladj``; its inverse ``transform.inv`` is only used to score.

    References:
        Rezende, Mohamed, "Variational Inference with Normalizing Flows", 2015, https://arxiv.org/abs/1505.05770
        Rozet and others, "Zuko: Normalizing flows in PyTorch", 2022, https://github.com/probabilists/zuko

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vae.distributions.zuko import transforms
        >>> base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> shift = transforms.DependentTransform(transforms.AdditiveTransform(torch.ones(2)), 1)
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
        self._draw: tuple[Tensor, Tensor] | None = None
        super().__init__(base.batch_shape, base.event_shape, validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: object = None) -> NormalizingFlow:
        return NormalizingFlow(self.base.expand(batch_shape), self.transform, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        if self._draw is not None and value is self._draw[0]:
            return self._draw[1]
        u, log_det = self.transform.inv.call_and_ladj(value)
        return self.base.log_prob(u) + log_det

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        u = self.base.rsample(sample_shape)
        z, log_det = self.transform.call_and_ladj(u)
        if torch.is_grad_enabled():
            self._draw = z, self.base.log_prob(u) - log_det
        return z
