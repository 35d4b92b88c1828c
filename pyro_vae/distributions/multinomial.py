"""The multinomial with a total of its own for every datum."""

from __future__ import annotations

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.types import _size


class counts_of(constraints.Constraint):
    """Vectors of whole numbers with a given sum.

    Args:
        total_count: the sum, of the batch's shape.

    Example:
        >>> counts_of(torch.tensor(3)).check(torch.tensor([[1.0, 2.0], [1.0, 1.0]]))
        tensor([ True, False])
    """

    is_discrete = True
    event_dim = 1

    def __init__(self, total_count: Tensor) -> None:
        self.total_count = total_count
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return ((value >= 0) & (value % 1 == 0)).all(-1) & (value.sum(-1) == self.total_count)

    def __repr__(self) -> str:
        return "counts that sum to total_count"


class Multinomial(TorchDistribution):
    r"""Counts x of D categories among n draws: :math:`P(x) = n! \prod_d p_d^{x_d} / x_d!`, p = softmax(logits).

    ``torch.distributions.Multinomial`` has one n for all; here documents of different lengths share a batch.

    Args:
        total_count: n, whole numbers of at least 0, of a shape that broadcasts with the batch's.
        logits: (\\*batch, D), log-probabilities up to a constant.

    Example:
        >>> Multinomial(torch.tensor([3.0, 5.0]), torch.zeros(4)).sample().sum(-1)
        tensor([3., 5.])
    """

    arg_constraints = {"total_count": constraints.nonnegative_integer, "logits": constraints.real_vector}

    def __init__(self, total_count: Tensor, logits: Tensor, validate_args: bool | None = None) -> None:
        batch_shape = torch.broadcast_shapes(total_count.shape, logits.shape[:-1])
        self.total_count = total_count.expand(batch_shape)
        self.logits = logits.log_softmax(-1).expand(batch_shape + logits.shape[-1:])
        super().__init__(batch_shape, logits.shape[-1:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        return counts_of(self.total_count)

    def expand(self, batch_shape: _size, _instance: object = None) -> Multinomial:
        total_count, logits = self.total_count.expand(batch_shape), self.logits.expand(*batch_shape, -1)
        return type(self)(total_count, logits, validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        return self.total_count[..., None] * self.logits.exp()

    @property
    def variance(self) -> Tensor:
        probs = self.logits.exp()
        return self.total_count[..., None] * probs * (1 - probs)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            total_count = self.total_count.expand(shape[:-1]).flatten()
            longest = int(total_count.max())
            counts = self.logits.new_zeros(len(total_count), shape[-1])
            if longest > 0:
                # As many draws as the longest document has, of which the others leave out the last.
                draws = self.logits.exp().expand(shape).reshape(counts.shape).multinomial(longest, replacement=True)
                kept = torch.arange(longest, device=counts.device) < total_count[:, None]
                counts.scatter_add_(-1, draws, kept.to(counts.dtype))
            return counts.reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # In double precision, in which the terms of many counts cancel.
        total_count, x, log_p = self.total_count.double(), value.double(), self.logits.double()
        coefficient = torch.lgamma(total_count + 1) - torch.lgamma(x + 1).sum(-1)
        return (coefficient + (x * log_p).sum(-1)).to(self.logits.dtype)
