"""Reconstruction errors of an element, and the likelihoods whose negative logarithms they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.nn import functional

from pyro_vae import distributions, likelihoods
from pyro_vae.likelihoods import Likelihood
from pyro_vae.nets import Body

MakeLikelihood = Callable[[Body], Likelihood]


@dataclass(frozen=True)
class Error:
    """An error e(x, loc) of single elements, and the density exp(-e / T) / Z(T)."""

    words: ClassVar[str]
    """What the error is called."""
    family: ClassVar[str]
    """What the density is called."""
    support: ClassVar[constraints.Constraint] = constraints.real
    accepts: ClassVar[str] = "finite data"

    def scale(self, temperature: float) -> float | None:
        """The density's, in the units of x; None where there is none to choose, and T is 1."""
        return None

    def log_normalizer(self, temperature: float) -> float:
        """Log Z(T), in nats."""
        return 0.0

    def likelihood(self, event_shape: Size, temperature: float) -> MakeLikelihood:
        """The likelihood, but for its network."""
        raise NotImplementedError

    def excess(self, data: Tensor) -> float | None:
        """The error of the data's mean over the least, summed over elements, mean over data; None if there is none."""
        mean = data.mean(0, dtype=torch.float64)
        total = 0.0
        for part in data.split(1024):
            x = part.double()
            total += float(self.of(mean.expand_as(x), x) - self.of(x, x))
        return total / len(data)

    def of(self, loc: Tensor, x: Tensor) -> Tensor:
        """The sum of all errors."""
        raise NotImplementedError


@dataclass(frozen=True)
class Squared(Error):
    """(x - loc)^2."""

    words, family = "Squared error", "Normal"

    def scale(self, temperature: float) -> float:
        return math.sqrt(temperature / 2)

    def log_normalizer(self, temperature: float) -> float:
        return math.log(math.pi * temperature) / 2

    def likelihood(self, event_shape: Size, temperature: float) -> MakeLikelihood:
        return partial(likelihoods.Normal, event_shape=event_shape, scale=self.scale(temperature))

    def of(self, loc: Tensor, x: Tensor) -> Tensor:
        return functional.mse_loss(loc, x, reduction="sum")


@dataclass(frozen=True)
class Absolute(Error):
    """The distance of x and loc."""

    words, family = "Absolute error", "Laplace"

    def scale(self, temperature: float) -> float:
        return temperature

    def log_normalizer(self, temperature: float) -> float:
        return math.log(2 * temperature)

    def likelihood(self, event_shape: Size, temperature: float) -> MakeLikelihood:
        return partial(likelihoods.Laplace, event_shape=event_shape, scale=self.scale(temperature))

    def of(self, loc: Tensor, x: Tensor) -> Tensor:
        return functional.l1_loss(loc, x, reduction="sum")


@dataclass(frozen=True)
class Huber(Error):
    """Half the squared error up to delta, and linear beyond; over delta where it is smooth_l1."""

    words, family = "Huber's loss", "Huber"
    delta: float
    over_delta: bool

    def scale(self, temperature: float) -> float:
        return math.sqrt(temperature * (self.delta if self.over_delta else 1))

    def log_normalizer(self, temperature: float) -> float:
        scale = self.scale(temperature)
        zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        return math.log(scale) + distributions.Huber(zero, one, self.delta / scale).log_normalizer.item()

    def likelihood(self, event_shape: Size, temperature: float) -> MakeLikelihood:
        scale = self.scale(temperature)
        return partial(likelihoods.Huber, event_shape=event_shape, scale=scale, delta=self.delta / scale)

    def of(self, loc: Tensor, x: Tensor) -> Tensor:
        if self.over_delta:
            return functional.smooth_l1_loss(loc, x, reduction="sum", beta=self.delta)
        return functional.huber_loss(loc, x, reduction="sum", delta=self.delta)


@dataclass(frozen=True)
class Binary(Error):
    """Binary cross-entropy."""

    words, family = "Binary cross-entropy", "Bernoulli"
    support, accepts = constraints.unit_interval, "data in [0, 1], without which it has no minimum"

    def likelihood(self, event_shape: Size, temperature: float) -> MakeLikelihood:
        return partial(likelihoods.Bernoulli, event_shape=event_shape)

    def of(self, loc: Tensor, x: Tensor) -> Tensor:
        return functional.binary_cross_entropy(loc, x, reduction="sum")


@dataclass(frozen=True)
class Categories(Error):
    """Cross-entropy of one of several categories."""

    words, family = "Cross-entropy", "Categorical"
    num_categories: int

    @property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        """The categories' numbers."""
        return constraints.integer_interval(0, self.num_categories - 1)

    @property
    def accepts(self) -> str:  # type: ignore[override]
        """The same in words."""
        return f"categories 0, ..., {self.num_categories - 1}"

    def likelihood(self, event_shape: Size, temperature: float) -> MakeLikelihood:
        return partial(likelihoods.Categorical, self.num_categories, event_shape=event_shape)

    def excess(self, data: Tensor) -> float:
        """Of the data's frequencies: their entropy."""
        x = data.flatten(1).long()
        places = x + self.num_categories * torch.arange(x.shape[1], device=x.device)
        counts = torch.bincount(places.flatten(), minlength=self.num_categories * x.shape[1])
        return float(torch.special.entr(counts.double() / len(x)).sum())


@dataclass(frozen=True)
class LearnedNormal(Error):
    """log(variance) / 2 + (x - loc)^2 / (2 variance), with a variance that is learned, as gaussian_nll_loss has it."""

    words, family = "A Normal's negative log-density", "Normal"

    def log_normalizer(self, temperature: float) -> float:
        return math.log(2 * math.pi) / 2

    def likelihood(self, event_shape: Size, temperature: float) -> MakeLikelihood:
        return partial(likelihoods.Normal, event_shape=event_shape, scale="per_element")

    def excess(self, data: Tensor) -> None:
        """None: a learned scale may fall without bound."""
