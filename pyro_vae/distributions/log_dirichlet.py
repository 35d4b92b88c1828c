"""The Dirichlet distribution, in log space, see :mod:`pyro_vae.distributions.log_space`."""

from __future__ import annotations

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Dirichlet, constraints
from torch.types import _size

from pyro_vae.distributions.log_space import log_simplex
from pyro_vae.internals import standard_gamma


class LogDirichlet(TorchDistribution):
    r"""log y of proportions y ~ Dirichlet(concentration).

    .. math::  \log p(\log y) = \log\Gamma(\textstyle\sum_i a_i) - \sum_i \log\Gamma(a_i) + \sum_i a_i \log y_i,

    a density of the log-ratios of y. A draw is that of log-Gamma variables: those of shape a + 1, plus
    :math:`\log(U)/a`, which small concentrations a send far below what a single-precision y can be. Reparameterized.

    Args:
        concentration: a, positive, without unit, (\*batch_shape, d).

    References:
        Marsaglia, Tsang, "A simple method for generating gamma variables", 2000, section 6 (the shape a + 1),
        https://doi.org/10.1145/358407.358414
        Figurnov, Mohamed, Mnih, "Implicit Reparameterization Gradients", 2018, https://arxiv.org/abs/1805.08498

    Example:
        >>> LogDirichlet(torch.ones(2)).log_prob(torch.tensor([0.3, 0.7]).log()).exp()  # of a uniform y: y_1 y_2
        tensor(0.2100)
        >>> LogDirichlet(torch.full((2,), 1e-3)).proportions.mean
        tensor([0.5000, 0.5000])
    """

    arg_constraints = {"concentration": constraints.independent(constraints.positive, 1)}
    support = log_simplex
    has_rsample = True

    def __init__(self, concentration: Tensor, validate_args: bool | None = None) -> None:
        self.concentration = concentration
        super().__init__(concentration.shape[:-1], concentration.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: object = None) -> LogDirichlet:
        return LogDirichlet(self.concentration.expand(Size(batch_shape) + self.event_shape), self._validate_args)

    @property
    def proportions(self) -> Dirichlet:
        """The distribution of y itself."""
        return Dirichlet(self.concentration, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """E[log y]."""
        return self.concentration.digamma() - self.concentration.sum(-1, keepdim=True).digamma()

    @property
    def variance(self) -> Tensor:
        """Var[log y]."""
        total = self.concentration.sum(-1, keepdim=True)
        return torch.polygamma(1, self.concentration) - torch.polygamma(1, total)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # In double precision, since terms of the size of the concentration cancel; normalized anew, as it is rounded.
        a, log_y = self.concentration.double(), value.double().log_softmax(-1)
        return (a.sum(-1).lgamma() - a.lgamma().sum(-1) + (a * log_y).sum(-1)).to(self.concentration.dtype)

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        a = self.concentration.expand(self._extended_shape(sample_shape))
        log_uniform = -torch.empty(a.shape, dtype=a.dtype, device=a.device).exponential_()
        return (standard_gamma(a + 1).log() + log_uniform / a).log_softmax(-1)
