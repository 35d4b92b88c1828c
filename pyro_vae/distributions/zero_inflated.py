"""Counts with more zeros than a distribution has of its own."""

from __future__ import annotations

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid
from torch.types import _size


class ZeroInflated(TorchDistribution):
    r"""0 with probability g = sigmoid(gate_logits), and a draw of another distribution otherwise.

    .. math:: P(x) = g\,[x = 0] + (1 - g) P_{\text{base}}(x).

    ``pyro.distributions.ZeroInflatedDistribution`` cannot be expanded once it has been sampled, and from then on takes
    its log-probability from g, which rounds to 0 or 1, in place of its logit.

    Args:
        base_dist: a distribution of single counts.
        gate_logits: the logit of g; broadcasts with the base's batch.

    Example:
        >>> import pyro.distributions as dist
        >>> ZeroInflated(dist.Poisson(torch.tensor(4.0)), torch.tensor(0.0)).mean
        tensor(2.)
    """

    arg_constraints = {"gate_logits": constraints.real}

    def __init__(self, base_dist: TorchDistribution, gate_logits: Tensor, validate_args: bool | None = None) -> None:
        batch_shape = torch.broadcast_shapes(base_dist.batch_shape, gate_logits.shape)
        self.base_dist = base_dist.expand(batch_shape)
        self.gate_logits = gate_logits.expand(batch_shape)
        super().__init__(batch_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint | None:
        return self.base_dist.support

    def expand(self, batch_shape: _size, _instance: object = None) -> ZeroInflated:
        base_dist, gate_logits = self.base_dist.expand(batch_shape), self.gate_logits.expand(batch_shape)
        return type(self)(base_dist, gate_logits, validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        return (-self.gate_logits).sigmoid() * self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        kept = (-self.gate_logits).sigmoid()
        return kept * (self.base_dist.variance + self.gate_logits.sigmoid() * self.base_dist.mean**2)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        with torch.no_grad():
            counts = self.base_dist.sample(sample_shape)
            return counts.masked_fill(torch.rand_like(counts) < self.gate_logits.sigmoid(), 0.0)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        counted = logsigmoid(-self.gate_logits) + self.base_dist.log_prob(value)
        return torch.where(value == 0, torch.logaddexp(logsigmoid(self.gate_logits), counted), counted)
