"""Independent blocks of the columns of one row, each with a distribution of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.types import _size

from pyro_vae.distributions.elementwise import elementwise_log_prob

Block = slice | list[int]


class Joint(TorchDistribution):
    r"""A row x of D columns with :math:`\log p(x) = \sum_i \log p_i(x_{S_i})` over blocks :math:`S_i` of its columns.

    Args:
        parts: (columns, distribution) of every block: slices, or lists of places, that cover each of the D columns
            once, and distributions of ``event_shape`` (number of columns,).

    Example:
        >>> import pyro.distributions as dist
        >>> real, count = dist.Normal(torch.zeros(2), 1.0).to_event(1), dist.Poisson(torch.ones(1)).to_event(1)
        >>> Joint([(slice(0, 2), real), (slice(2, 3), count)]).mean
        tensor([0., 0., 1.])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, parts: Sequence[tuple[Block, TorchDistribution]], validate_args: bool | None = None) -> None:
        batch_shape = torch.broadcast_shapes(*(part.batch_shape for _, part in parts))
        self.parts = [(columns, part.expand(batch_shape)) for columns, part in parts]
        width = sum(part.event_shape[0] for _, part in parts)
        super().__init__(batch_shape, Size([width]), validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return all(part.has_rsample for _, part in self.parts)

    @constraints.dependent_property(event_dim=1)
    def support(self) -> constraints.Constraint:
        return columns_in([(columns, part.support) for columns, part in self.parts])

    def expand(self, batch_shape: _size, _instance: object = None) -> Joint:
        parts = [(columns, part.expand(batch_shape)) for columns, part in self.parts]
        return type(self)(parts, validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        return self._join([part.mean for _, part in self.parts])

    @property
    def variance(self) -> Tensor:
        return self._join([part.variance for _, part in self.parts])

    def sample(self, sample_shape: _size = ()) -> Tensor:
        return self._join([part.sample(sample_shape) for _, part in self.parts])

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        return self._join([part.rsample(sample_shape) for _, part in self.parts])

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return torch.stack([part.log_prob(value[..., columns]) for columns, part in self.parts]).sum(0)

    def elementwise_log_prob(self, value: Tensor) -> Tensor:
        """The log-density of every column, where each part has one; sums to ``log_prob``."""
        return self._join([elementwise_log_prob(part, value[..., columns]) for columns, part in self.parts])

    def _join(self, blocks: Sequence[Tensor]) -> Tensor:
        row = blocks[0].new_empty(blocks[0].shape[:-1] + self.event_shape)
        for (columns, _), block in zip(self.parts, blocks, strict=True):
            row[..., columns] = block
        return row


class columns_in(constraints.Constraint):
    """Rows whose blocks of columns satisfy constraints of their own, which are constraints on vectors."""

    event_dim = 1

    def __init__(self, parts: Sequence[tuple[Block, constraints.Constraint]]) -> None:
        self.parts = parts
        self.is_discrete = all(constraint.is_discrete for _, constraint in parts)
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return torch.stack([constraint.check(value[..., columns]) for columns, constraint in self.parts]).all(0)

    def __repr__(self) -> str:
        return "columns of " + ", ".join(repr(constraint) for _, constraint in self.parts)
