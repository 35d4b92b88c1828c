"""Mixtures of Normals with diagonal covariances, as fast matrix products and with pathwise gradients."""

from __future__ import annotations

import math

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Categorical, constraints
from torch.types import _size


class MixtureOfDiagonalNormals(TorchDistribution):
    r"""Density :math:`p(z) = \sum_k \pi_k \prod_i \mathrm{Normal}(z_i; \mathrm{loc}_{ki}, \mathrm{scale}_{ki}^2)`.

    With one set of components for the whole batch (a prior) the exponents :math:`-\frac12 \sum_i (z_i -
    \mathrm{loc}_{ki})^2 / \mathrm{scale}_{ki}^2` are expanded into a single matrix product, so that hundreds of
    components cost little. With components of their own for every row (a conditional) they are computed as they stand.

    ``rsample`` draws a component and a point, and gives the point the derivative that the distribution functions
    :math:`F_i(z_i | z_{<i})` dictate (implicit reparameterization): :math:`dz / d\theta = -(dF / dz)^{-1} \partial F /
    \partial\theta` with a triangular :math:`dF / dz`. Weights, locations and scales all have pathwise gradients.

    Args:
        loc: means, (\*batch_shape, num_components, dim), in the units of z.
        scale: standard deviations, of the same shape, positive.
        logits: unnormalized log-weights, (\*batch_shape, num_components).
        batch_shape: one that the parameters' broadcasts to, theirs if left out.

    References:
        Figurnov, Mohamed, Mnih, "Implicit Reparameterization Gradients", 2018, https://arxiv.org/abs/1805.08498
        Graves, "Stochastic Backpropagation through Mixture Density Distributions", 2016,
        https://arxiv.org/abs/1607.05690

    Example:
        >>> loc = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
        >>> MixtureOfDiagonalNormals(loc, torch.ones(2, 2), torch.zeros(2)).mean
        tensor([0., 0.])
    """

    arg_constraints = {
        "loc": constraints.independent(constraints.real, 2),
        "scale": constraints.independent(constraints.positive, 2),
        "logits": constraints.real_vector,
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        logits: Tensor,
        validate_args: bool | None = None,
        *,
        batch_shape: Size | None = None,
    ) -> None:
        if loc.dim() < 2 or loc.shape != scale.shape or loc.shape[:-1] != logits.shape:
            raise ValueError(
                "MixtureOfDiagonalNormals: expected loc and scale of shape (..., num_components, dim) and logits of "
                f"shape (..., num_components); got {tuple(loc.shape)}, {tuple(scale.shape)} and {tuple(logits.shape)}. "
                "Make them agree."
            )
        self.loc = loc
        self.scale = scale
        self.logits = logits.log_softmax(-1)
        super().__init__(
            loc.shape[:-2] if batch_shape is None else batch_shape, loc.shape[-1:], validate_args=validate_args
        )

    def expand(self, batch_shape: _size, _instance: object = None) -> MixtureOfDiagonalNormals:
        # Parameters stay as small as they are: the matrix product needs one set of components.
        return MixtureOfDiagonalNormals(
            self.loc, self.scale, self.logits, self._validate_args, batch_shape=Size(batch_shape)
        )

    @property
    def mean(self) -> Tensor:
        mean = (self.logits.exp().unsqueeze(-1) * self.loc).sum(-2)
        return mean.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        weights = self.logits.exp().unsqueeze(-1)
        deviation = self.loc - (weights * self.loc).sum(-2, keepdim=True)
        variance = (weights * (self.scale**2 + deviation**2)).sum(-2)
        return variance.expand(self.batch_shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        exponent = self._shared_exponent(value) if self.loc.dim() == 2 else self._exponent(value)
        log_volume = self.scale.log().sum(-1) + self.event_shape[0] / 2 * math.log(2 * math.pi)
        log_prob = (exponent + self.logits - log_volume).logsumexp(-1)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            logits = self.logits.expand(self.batch_shape + self.logits.shape[-1:])
            component = Categorical(logits=logits, validate_args=False).sample(Size(sample_shape))
            index = component[..., None, None].expand(*shape[:-1], 1, *self.event_shape)
            components = shape[:-1] + self.loc.shape[-2:]
            loc = self.loc.expand(components).gather(-2, index).squeeze(-2)
            scale = self.scale.expand(components).gather(-2, index).squeeze(-2)
            z = loc + scale * torch.randn_like(loc)
        differentiable = self.loc.requires_grad or self.scale.requires_grad or self.logits.requires_grad
        return self._with_gradient(z) if differentiable and torch.is_grad_enabled() else z

    def _exponent(self, value: Tensor) -> Tensor:
        """The components' exponents, (..., num_components)."""
        return -((value.unsqueeze(-2) - self.loc) / self.scale).square().sum(-1) / 2

    def _shared_exponent(self, value: Tensor) -> Tensor:
        """The same by one matrix product, for components without batch dims."""
        center = self.loc.detach().mean(0)  # small numbers in the expanded square lose fewer digits
        z, loc, precision = value - center, self.loc - center, self.scale**-2
        weight = torch.cat([-precision / 2, precision * loc], -1)
        return torch.nn.functional.linear(torch.cat([z**2, z], -1), weight, -(precision * loc**2).sum(-1) / 2)

    def _with_gradient(self, z: Tensor) -> Tensor:
        """The draws z with the derivative that the functions F_i(z_i | z_<i) dictate."""
        standard = (z.unsqueeze(-2) - self.loc) / self.scale
        log_density = -(standard**2) / 2 - self.scale.log() - math.log(2 * math.pi) / 2
        # a component's weight at dimension i is its posterior weight given z_<i
        log_weight = self.logits.unsqueeze(-1) + log_density.cumsum(-1) - log_density
        weight = log_weight.softmax(-2)
        cdf = torch.special.ndtr(standard)
        mixture_cdf = (weight * cdf).sum(-2)
        with torch.no_grad():
            density = (weight * log_density.exp()).sum(-2)
            surprise = weight * (cdf - mixture_cdf.unsqueeze(-2))
            jacobian = (surprise.mT @ (-standard / self.scale)).tril(-1) + torch.diag_embed(density)
        change = (mixture_cdf - mixture_cdf.detach()).unsqueeze(-1)
        return z - torch.linalg.solve_triangular(jacobian, change, upper=False).squeeze(-1)
