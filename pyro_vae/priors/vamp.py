r"""VampPrior: a prior made of the posterior itself, :math:`p(z) = \frac1K \sum_k q(z|u_k)`.

It is the closest that a mixture of K densities of the posterior's family comes to the aggregate posterior, which is the
prior that maximizes the ELBO.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_vae import checks
from pyro_vae.distributions import MixtureOfDiagonalNormals, shaped
from pyro_vae.family import Family
from pyro_vae.priors.base import Prior


class VampPrior(Prior):
    r"""The average of the posteriors of K learned pseudo-inputs, :math:`p(z) = \frac1K \sum_k q(z|u_k)`.

    ``VAE`` binds it to its posterior. Until then it has no density, and its ``event_shape`` is (). The posterior is
    not a submodule: its parameters belong to the guide, and are in ``state_dict()`` once. The posterior is to be a
    ``DiagonalNormal``; the density is then a single matrix product, with the :math:`-\log K` that keeps it normalized.

    Args:
        pseudo_inputs: where the pseudo-inputs start, data of shape (K, \*event_shape), for instance
            ``train.tensor()[:500]``; integers are taken for pixels in 0, ..., 255 and divided by 255.
        num_components: K, where it is less than the pseudo-inputs given, of which the first are taken.
        clamp: keep the pseudo-inputs in [0, 1], as gray pixels are, by clamping them in the forward pass. False for
            data of another range.

    Raises:
        ValueError: when called unbound, or bound to a posterior of another family.

    References:
        Tomczak, Welling, "VAE with a VampPrior", 2018, https://arxiv.org/abs/1705.07120

    Example:
        >>> from pyro_vae import conditionals, nets
        >>> posterior = conditionals.DiagonalNormal(nets.MLP((1, 4, 4), [8]), 2)
        >>> u, z = torch.rand(5, 1, 4, 4), torch.zeros(2)
        >>> prior = VampPrior(pseudo_inputs=u).bind(posterior)
        >>> torch.allclose(prior().log_prob(z).exp(), posterior(u).log_prob(z).exp().mean())
        True
    """

    def __init__(self, pseudo_inputs: Tensor, num_components: int | None = None, *, clamp: bool = True) -> None:
        super().__init__(())
        if pseudo_inputs.dim() < 2 or len(pseudo_inputs) < 1:
            raise ValueError(
                f"VampPrior: expected pseudo_inputs of shape (K, *event_shape); got {tuple(pseudo_inputs.shape)}. "
                "Give a batch of data, for example train.tensor()[:500]."
            )
        if num_components is not None:
            checks.whole("VampPrior", "num_components", num_components)
            if num_components > len(pseudo_inputs):
                raise ValueError(
                    f"VampPrior: expected at least num_components={num_components} pseudo_inputs; got "
                    f"{len(pseudo_inputs)}. Give more data, or fewer components."
                )
        values = pseudo_inputs[:num_components].detach().clone()
        if not values.is_floating_point():
            values = values.to(torch.get_default_dtype()) / 255
        self.pseudo_inputs = nn.Parameter(values)
        self.clamp = clamp
        # A tuple, because nn.Module would register a module, and the encoder would be in the state_dict twice.
        self._holder: tuple[Any, ...] = ()

    def bind(self, posterior: Family, guide: nn.Module | None = None) -> VampPrior:
        """Takes the posterior q(z|x) whose average this is; returns itself.

        Args:
            posterior: q(z|x).
            guide: what holds it as ``posterior``, where it may be replaced.

        Raises:
            ValueError: the posterior is none of such data alone, or its distributions are not diagonal Normals.
        """
        shapes = [tuple(shape) for shape in posterior.body.input_shapes]
        if shapes != [tuple(self.pseudo_inputs.shape[1:])]:
            raise ValueError(
                f"VampPrior: expected a posterior of data of shape {tuple(self.pseudo_inputs.shape[1:])}; got a body "
                f"with inputs of shapes {shapes}. Give pseudo-inputs of the data's shape; a context has none."
            )
        weight = next(posterior.head.parameters())
        with torch.no_grad():
            features = weight.new_zeros(posterior.body.feature_shape)
            self._normal(posterior.distribution(**posterior.head(features)), type(posterior).__name__)
        self._holder = (posterior if guide is None else guide,)
        self.event_shape = posterior.event_shape
        return self

    def forward(self) -> TorchDistribution:
        if not self._holder:
            raise ValueError(
                "VampPrior: expected to be bound to a posterior; got none. Build a VAE with it, or call "
                "prior.bind(posterior)."
            )
        (holder,) = self._holder
        posterior = holder if isinstance(holder, Family) else holder.posterior
        inputs = self.pseudo_inputs.clamp(0, 1) if self.clamp else self.pseudo_inputs
        normal = self._normal(posterior(inputs), type(posterior).__name__)
        loc, scale = normal.loc.flatten(1), normal.scale.flatten(1)
        return shaped(MixtureOfDiagonalNormals(loc, scale, loc.new_zeros(len(inputs))), self.event_shape)

    @staticmethod
    def _normal(distribution: TorchDistribution, name: str) -> dist.Normal:
        """The Normals of the single elements of z."""
        base = getattr(distribution, "base_dist", None)
        if not isinstance(base, dist.Normal) or getattr(distribution, "event_dim", 0) < 1:
            raise ValueError(
                f"VampPrior: expected a posterior of independent Normals; got {name}. Use conditionals.DiagonalNormal, "
                "or another prior."
            )
        return base

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Pseudo-inputs go through the posterior, so that both have one precision and one device.
        for holder in self._holder:
            holder._apply(fn, recurse)
        return super()._apply(fn, recurse)
