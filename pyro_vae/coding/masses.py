"""Data as symbols, with the masses that a likelihood gives them.

Shapes: S symbols, K values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

from pyro_vae import distributions, likelihoods
from pyro_vae.coding.stack import Stack
from pyro_vae.distributions import elementwise_log_prob
from pyro_vae.likelihoods import Likelihood

_MOST_LEVELS = 2**16  # of an element: they take a 256th of the coder's mass, as each has 2^-24, and much memory


class Code:
    """How data of a likelihood are written: by independent symbols, or symbols given earlier ones."""

    masses: int
    """How many a datum needs, which memory is for."""

    def exact(self, x: Tensor) -> Tensor:
        """The data as they are decoded: values that are off by a rounding would not come back."""
        raise NotImplementedError

    def push(self, stack: Stack, given_z: Any, x: Tensor) -> None:
        """Encodes x, (N, \\*event_shape), of which this is the distribution."""
        raise NotImplementedError

    def pop(self, stack: Stack, given_z: Any) -> Tensor:
        """Decodes x."""
        raise NotImplementedError


class Elements(Code):
    """Independent elements k / per_unit, k = 0, ..., levels - 1.

    Args:
        levels: their number.
        per_unit: levels in a unit of the data: 255 for pixels, which are k / 255, as k * (1 / 255) is not to the last
            bit.
        event_shape: of a datum.
        dtype: of the data.
    """

    def __init__(self, levels: int, per_unit: float, event_shape: Size, dtype: torch.dtype) -> None:
        self.per_unit = per_unit
        self.levels = torch.arange(max(levels, 2), dtype=dtype) / per_unit  # the coder's alphabets have 2 at least
        self.event_shape = event_shape
        self.masses = len(self.levels) * event_shape.numel()

    def exact(self, x: Tensor) -> Tensor:
        return self.levels[self._symbols(x)]

    def push(self, stack: Stack, given_z: Any, x: Tensor) -> None:
        stack.push_masses(self._symbols(x).flatten(), self._masses(given_z))

    def pop(self, stack: Stack, given_z: Any) -> Tensor:
        symbols = stack.pop_masses(self._masses(given_z))
        return self.levels.double()[symbols].reshape(-1, *self.event_shape)

    def _symbols(self, x: Tensor) -> Tensor:
        return (x * self.per_unit).round().long()

    def _masses(self, given_z: TorchDistribution) -> Tensor:
        every = self.levels.double().reshape(-1, *[1] * (1 + len(self.event_shape)))
        return _normalized(elementwise_log_prob(given_z, every))


class Channels(Code):
    """Pixels whose channels depend on those before them.

    Args:
        levels: of each.
        event_shape: channels, height, width.
        dtype: of the data.
    """

    def __init__(self, levels: int, event_shape: Size, dtype: torch.dtype) -> None:
        self.elements = Elements(levels, levels - 1, event_shape, dtype)
        self.masses = self.elements.masses

    def exact(self, x: Tensor) -> Tensor:
        return self.elements.exact(x)

    def push(self, stack: Stack, given_z: Any, x: Tensor) -> None:
        symbols = self.elements._symbols(x)
        for c in reversed(range(x.shape[1])):
            stack.push_masses(symbols[:, c].flatten(), self._masses(given_z, x[:, :c]))

    def pop(self, stack: Stack, given_z: Any) -> Tensor:
        channels, *size = self.elements.event_shape
        x = given_z.loc.new_empty(len(given_z.loc), 0, *size)
        for _ in range(channels):
            symbols = stack.pop_masses(self._masses(given_z, x))
            x = torch.cat([x, self.elements.levels.double()[symbols].reshape(-1, 1, *size)], 1)
        return x

    def _masses(self, given_z: Any, known: Tensor) -> Tensor:
        """Of the next channel of every pixel: pixels are data of one pixel each, of the first channels."""
        c = known.shape[1] + 1
        logits, loc, scale, coefficients = (
            parameters.movedim((-2, -1), (1, 2))[..., None, None]
            for parameters in (
                given_z.logits,
                given_z.loc[..., :c, :, :],
                given_z.scale[..., :c, :, :],
                given_z.coefficients[..., : c * (c - 1) // 2, :, :],
            )
        )
        pixels = distributions.MixtureOfDiscretizedLogistics(logits, loc, scale, coefficients, given_z.levels)
        every = self.elements.levels.double()
        values = known.movedim(1, -1).expand(len(every), -1, -1, -1, -1)
        last = every.reshape(-1, 1, 1, 1, 1).expand(*values.shape[:-1], 1)
        return _normalized(pixels.log_prob(torch.cat([values, last], -1)[..., None, None]))


class OneHot(Code):
    """One-hot vectors along the last dim, a symbol each.

    Args:
        event_shape: of a datum.
        dtype: of the data.
    """

    def __init__(self, event_shape: Size, dtype: torch.dtype) -> None:
        self.rows = torch.eye(event_shape[-1], dtype=dtype)
        self.event_shape = event_shape
        self.masses = event_shape.numel()

    def exact(self, x: Tensor) -> Tensor:
        return self.rows[x.argmax(-1)]

    def push(self, stack: Stack, given_z: Any, x: Tensor) -> None:
        stack.push_masses(x.argmax(-1).flatten(), self._masses(given_z))

    def pop(self, stack: Stack, given_z: Any) -> Tensor:
        return self.rows.double()[stack.pop_masses(self._masses(given_z))].reshape(-1, *self.event_shape)

    def _masses(self, given_z: Any) -> Tensor:
        every = self.rows.double().reshape(len(self.rows), *[1] * len(self.event_shape), -1)
        return _normalized(given_z.base_dist.log_prob(every) if len(self.event_shape) > 1 else given_z.log_prob(every))


class Columns(Code):
    """Blocks of columns with a code each.

    Args:
        blocks: columns and their code.
    """

    def __init__(self, blocks: Sequence[tuple[slice | list[int], Code]]) -> None:
        self.blocks = blocks
        self.masses = sum(code.masses for _, code in blocks)

    def exact(self, x: Tensor) -> Tensor:
        x = x.clone()
        for columns, code in self.blocks:
            x[:, columns] = code.exact(x[:, columns])
        return x

    def push(self, stack: Stack, given_z: Any, x: Tensor) -> None:
        for (columns, code), (_, part) in reversed(list(zip(self.blocks, given_z.parts, strict=True))):
            code.push(stack, part, x[:, columns])

    def pop(self, stack: Stack, given_z: Any) -> Tensor:
        x = torch.empty(given_z.batch_shape + given_z.event_shape, dtype=torch.double)
        for (columns, code), (_, part) in zip(self.blocks, given_z.parts, strict=True):
            x[:, columns] = code.pop(stack, part)
        return x


def _normalized(log_masses: Tensor) -> Tensor:
    """Masses of every symbol, (S, K), from their logarithms up to a constant, (K, ...)."""
    return log_masses.softmax(0).flatten(1).T.contiguous()


def largest_count(likelihood: Likelihood, x: Tensor) -> int:
    """The largest of the data that have no bound of their own, which the receiver must be told; 0 where all have."""
    if isinstance(likelihood, likelihoods.Mixed):
        blocks: Any = zip(likelihood.columns, likelihood.parts, strict=True)
        return max(largest_count(part, x[:, columns]) for columns, part in blocks)
    return int(x.max()) if likelihood.support is constraints.nonnegative_integer else 0


def code_of(likelihood: Likelihood, largest: int, dtype: torch.dtype) -> Code:
    """The code for data of a likelihood.

    Args:
        likelihood: p(x|z).
        largest: of counts without a bound.
        dtype: of the data.

    Raises:
        TypeError: a likelihood that gives data no masses, or needs more than z for them.
        ValueError: too many levels.
    """
    _check(likelihood)
    shape, support = likelihood.event_shape, likelihood.support
    if isinstance(likelihood, likelihoods.Mixed):
        blocks: Any = zip(likelihood.columns, likelihood.parts, strict=True)
        return Columns([(columns, code_of(part, largest, dtype)) for columns, part in blocks])
    if isinstance(likelihood, likelihoods.OneHotCategorical):
        return OneHot(shape, dtype)
    if isinstance(likelihood, likelihoods.MixtureOfDiscretizedLogistics):
        return Channels(likelihood.levels, shape, dtype)
    if isinstance(support, distributions.lattice):
        counts: Any = support.counts
        levels, per_unit = int(counts.upper_bound) + 1, 1 / support.spacing
    else:
        levels, per_unit = (2 if support is constraints.boolean else largest + 1), 1.0
    if levels > _MOST_LEVELS:
        raise ValueError(
            f"coding: expected elements of at most {_MOST_LEVELS} levels; got {levels} of {type(likelihood).__name__}. "
            "Keep the last digits of larger ones apart."
        )
    whole = round(per_unit)
    return Elements(levels, whole if math.isclose(whole, per_unit, rel_tol=1e-9) else per_unit, shape, dtype)


def _check(likelihood: Likelihood) -> None:
    """Raises for a likelihood without masses for the coder, by name."""
    if likelihood.contexts or len(likelihood.body.input_shapes) > 1:
        why = "which takes contexts. Use one of z alone, as contexts would have to be sent too"
    elif isinstance(likelihood, likelihoods.MissingAtRandom):
        why = "in whose data values are missing. Compress complete data, and what is missing apart"
    elif isinstance(likelihood, likelihoods.Dequantized):
        why = "which draws its log-probability at random. Use DiscretizedLogistic or Categorical"
    elif not _has_masses(likelihood):
        why = (
            "which gives values no masses of their own. Use Bernoulli, Binomial, Categorical, DiscretizedLogistic or a "
            "likelihood of counts: a density has no bits"
        )
    else:
        return
    name = type(likelihood).__name__
    raise TypeError(f"coding: expected a likelihood with a probability mass of each element; got {name}, {why}.")


def _has_masses(likelihood: Likelihood) -> bool:
    whole = (likelihoods.Mixed, likelihoods.OneHotCategorical, likelihoods.MixtureOfDiscretizedLogistics)
    bounded = isinstance(likelihood.support, distributions.lattice)
    counted = likelihood.support in (constraints.boolean, constraints.nonnegative_integer)
    return isinstance(likelihood, whole) or bounded or counted
