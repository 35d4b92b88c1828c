"""Times that are only known to exceed the end of observation: right-censored densities."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.special import log_ndtr, ndtr
from torch.types import _size

_FAR = 100.0


class Censored(TorchDistribution):
    r"""The smaller of a draw and a limit, :math:`x = \min(t, c)`, elementwise.

    A density below the limit and a probability at it,

    .. math:: \log p(x) = \log p_t(x) \text{ for } x < c, \qquad \log P(t \ge c) \text{ for } x = c.

    Args:
        base_dist: of t, Normal or LogNormal, of single elements.
        limit: c, which broadcasts with the base's batch; infinity where nothing ends the observation.

    Raises:
        TypeError: another distribution.

    References:
        Tobin, "Estimation of relationships for limited dependent variables", 1958, https://doi.org/10.2307/1907382

    Example:
        >>> waiting = Censored(dist.LogNormal(torch.tensor(0.0), 1.0), torch.tensor(1.0))
        >>> waiting.log_prob(torch.tensor([0.5, 1.0])).exp()
        tensor([0.6275, 0.5000])
    """

    arg_constraints = {"limit": constraints.dependent}

    def __init__(self, base_dist: TorchDistribution, limit: Tensor, validate_args: bool | None = None) -> None:
        if not isinstance(base_dist, dist.Normal | dist.LogNormal):
            raise TypeError(
                f"Censored: expected a Normal or a LogNormal; got {type(base_dist).__name__}. Use one of these."
            )
        batch_shape = torch.broadcast_shapes(base_dist.batch_shape, limit.shape)
        self.base_dist = base_dist.expand(batch_shape)
        self.limit = limit.expand(batch_shape)
        super().__init__(batch_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        return self.base_dist.support  # a value above its limit has density 0

    def expand(self, batch_shape: _size, _instance: object = None) -> Censored:
        limit = self.limit.expand(batch_shape)
        return type(self)(self.base_dist.expand(batch_shape), limit, validate_args=self._validate_args)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        return torch.minimum(self.base_dist.sample(sample_shape), self.limit)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # Where it is not chosen, the survival is that of the value, since an infinite limit has no gradient.
        survival = _log_survival(self._standardized(torch.where(value < self.limit, value, self.limit)))
        below = torch.where(value < self.limit, self.base_dist.log_prob(value), survival)
        return torch.where(value > self.limit, -math.inf, below)

    @property
    def mean(self) -> Tensor:
        r""":math:`E[\min(t, c)]`."""
        end = self._standardized(self.limit)
        loc, scale = self.base_dist.loc, self.base_dist.scale
        if isinstance(self.base_dist, dist.LogNormal):
            below = (loc + scale**2 / 2).exp() * ndtr(end - scale)
        else:
            below = loc * ndtr(end) - scale * (-(end**2) / 2).exp() / math.sqrt(2 * math.pi)
        at_limit = torch.where(self.limit.isinf(), 0.0, self.limit.nan_to_num(posinf=0.0) * ndtr(-end))
        return below + at_limit

    def _standardized(self, t: Tensor) -> Tensor:
        t = t.log() if isinstance(self.base_dist, dist.LogNormal) else t
        return (t - self.base_dist.loc) / self.base_dist.scale


def _log_survival(z: Tensor) -> Tensor:
    """Log P(Normal(0, 1) >= z); far out by its asymptote, since there the gradient of log_ndtr has no digits."""
    far = z.clamp(min=_FAR)
    asymptote = -(far**2) / 2 - far.log() - math.log(2 * math.pi) / 2  # off by 1 / far^2
    return torch.where(z > _FAR, asymptote, log_ndtr(-z.clamp(max=_FAR)))
