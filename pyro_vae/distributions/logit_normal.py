"""The logit-normal: the sigmoid of a Normal."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import SigmoidTransform
from torch.types import _size

_NODES = 201
_WIDTH = 10.0


class LogitNormal(dist.TransformedDistribution):  # type: ignore[misc]
    r"""x in (0, 1) with :math:`\mathrm{logit}(x) \sim \mathrm{Normal}(\mathrm{loc}, \mathrm{scale}^2)`.

    :math:`\log p(x) = \log \mathrm{Normal}(\mathrm{logit}\,x; \mathrm{loc}, \mathrm{scale}^2) - \log x - \log(1 - x)`.
    Its mean has no closed form; it is taken by the trapezoid rule over 20 scales, whose error is below 1e-6 for scales
    up to 10.

    Args:
        loc: in logits.
        scale: in logits, positive.

    References:
        Atchison, Shen, "Logistic-normal distributions: some properties and uses", 1980,
        https://doi.org/10.1093/biomet/67.2.261

    Example:
        >>> round(LogitNormal(torch.tensor(0.0), torch.tensor(3.0)).mean.item(), 6)
        0.5
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        base = dist.Normal(loc, scale, validate_args=validate_args)
        super().__init__(base, SigmoidTransform(), validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: object = None) -> LogitNormal:
        return type(self)(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self._validate_args)

    @property
    def loc(self) -> Tensor:
        """The mean of logit(x), and the logit of the median of x."""
        return self.base_dist.loc

    @property
    def scale(self) -> Tensor:
        """The standard deviation of logit(x)."""
        return self.base_dist.scale

    @property
    def mean(self) -> Tensor:
        return self._moment(1)

    @property
    def variance(self) -> Tensor:
        return self._moment(2) - self._moment(1) ** 2

    def _moment(self, power: int) -> Tensor:
        # The nodes are taken one by one: all at once would need 201 times the memory of a batch.
        step = 2 * _WIDTH / (_NODES - 1)
        total = torch.zeros_like(self.loc)
        for i in range(_NODES):
            node = i * step - _WIDTH
            weight = step * math.exp(-(node**2) / 2) / math.sqrt(2 * math.pi)
            total = total + weight * (self.loc + node * self.scale).sigmoid() ** power
        return total
