"""The logistic-normal distribution, in log space, see :mod:`pyro_vae.distributions.log_space`."""

from __future__ import annotations

import math

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.nn.functional import pad
from torch.types import _size

from pyro_vae.distributions.log_space import log_simplex


class LogLogisticNormal(TorchDistribution):
    r"""log y with log-ratios :math:`\log(y_i / y_d) \sim \mathrm{Normal}(\mathrm{loc}_i, \mathrm{scale}_i^2)`, i < d.

    :math:`\log p(\log y) = \sum_{i<d} \log \mathrm{Normal}(\log y_i - \log y_d; \mathrm{loc}_i, \mathrm{scale}_i^2)`,
    a density of the log-ratios, and y = softmax(x, 0) for a Normal x. Reparameterized.

    Args:
        loc: in nats (log-ratios), (\*batch_shape, d - 1).
        scale: likewise, positive.

    References:
        Aitchison, Shen, "Logistic-normal distributions: some properties and uses", 1980,
        https://doi.org/10.1093/biomet/67.2.261

    Example:
        >>> LogLogisticNormal(torch.zeros(1), torch.ones(1)).log_prob(torch.tensor([0.5, 0.5]).log())  # -log(2 pi) / 2
        tensor(-0.9189)
    """

    arg_constraints = {"loc": constraints.real_vector, "scale": constraints.independent(constraints.positive, 1)}
    support = log_simplex
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape[:-1], Size((self.loc.shape[-1] + 1,)), validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: object = None) -> LogLogisticNormal:
        shape = Size(batch_shape) + self.loc.shape[-1:]
        return LogLogisticNormal(self.loc.expand(shape), self.scale.expand(shape), self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        standard = (value[..., :-1] - value[..., -1:] - self.loc) / self.scale
        return (-(standard**2) / 2 - self.scale.log() - math.log(2 * math.pi) / 2).sum(-1)

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)[:-1] + self.loc.shape[-1:]
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return pad(self.loc + self.scale * noise, (0, 1)).log_softmax(-1)
