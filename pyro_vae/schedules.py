r"""Schedules: numbers that change over the epochs of a run, such as the weight beta of the latents' terms.

A schedule is any function of the epoch as a fraction: 2.5 is halfway through the third epoch. Those of this module are
values that compare and print, so that a record of the run can hold them.

    fit(vae, train, beta=schedules.linear(0.0, 1.0, epochs=10))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pyro_vae import checks

Schedule = Callable[[float], float]
"""From the epoch, as a fraction, to a number."""


@dataclass(frozen=True)
class linear:
    """A straight line from one value to another, which stays.

    Args:
        start: value at epoch 0.
        end: value from ``epochs`` on.
        epochs: length of the line.

    References:
        Bowman et al., "Generating sentences from a continuous space", 2016, https://arxiv.org/abs/1511.06349 (KL
        annealing); Sønderby et al., "Ladder Variational Autoencoders", 2016, https://arxiv.org/abs/1602.02282

    Example:
        >>> [linear(0.0, 1.0, epochs=10)(epoch) for epoch in (0, 5, 10, 20)]
        [0.0, 0.5, 1.0, 1.0]
    """

    start: float
    end: float
    epochs: float

    def __post_init__(self) -> None:
        _check(self, "epochs")

    def __call__(self, epoch: float) -> float:
        return self.start + (self.end - self.start) * min(1.0, epoch / self.epochs)


@dataclass(frozen=True)
class cosine:
    """Half a period of a cosine from one value to another, which stays: slow at both ends.

    Args:
        start: value at epoch 0.
        end: value from ``epochs`` on.
        epochs: length of the curve.

    References:
        Loshchilov, Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017,
        https://arxiv.org/abs/1608.03983

    Example:
        >>> [round(cosine(0.0, 1.0, epochs=10)(epoch), 3) for epoch in (0, 2.5, 5, 10, 20)]
        [0.0, 0.146, 0.5, 1.0, 1.0]
    """

    start: float
    end: float
    epochs: float

    def __post_init__(self) -> None:
        _check(self, "epochs")

    def __call__(self, epoch: float) -> float:
        share = min(1.0, epoch / self.epochs)
        return self.start + (self.end - self.start) * (1 - math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class cyclical:
    """A line from one value to another that begins anew with every period.

    Args:
        start: value at the beginning of each period.
        end: value from the share ``rising`` of the period to its end.
        period: in epochs.
        rising: share of the period in which the value changes, in (0, 1].

    References:
        Fu et al., "Cyclical annealing schedule: a simple approach to mitigating KL vanishing", 2019,
        https://arxiv.org/abs/1903.10145

    Example:
        >>> [cyclical(0.0, 1.0, period=4)(epoch) for epoch in (0, 1, 2, 3.9, 4, 5)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 0.5]
    """

    start: float
    end: float
    period: float
    rising: float = 0.5

    def __post_init__(self) -> None:
        _check(self, "period")
        checks.number("cyclical", "rising", self.rising, above=0, at_most=1)

    def __call__(self, epoch: float) -> float:
        share = (epoch % self.period) / self.period
        return self.start + (self.end - self.start) * min(1.0, share / self.rising)


def _check(schedule: linear | cosine | cyclical, length: str) -> None:
    name = type(schedule).__name__
    for value in ("start", "end"):
        checks.number(name, value, getattr(schedule, value))
    checks.number(name, length, getattr(schedule, length), above=0)
