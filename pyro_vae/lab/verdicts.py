r"""Which of several entries is better, by how much, or that it cannot be told.

Shapes: S seeds, N data.

The difference of two entries is that of their figures :math:`d_{sn}` for each seed s and datum n, both drawn from
populations of their own: its average is off by what seeds share, by what data share, and by what is left. The mean
squares :math:`M_S` of the averages over data and :math:`M_N` of those over seeds are independent, and

.. math:: \mathrm{margin}^2 = t_{S-1}^2 \frac{M_S}{S} + t_{N-1}^2 \frac{M_N}{N}

with quantiles of Student's t covers the true difference with at least their probability (Banerjee, 1960; Ruben, 2002),
however the variance is split between seeds and data. With a single seed the first term is missing, and the verdict is
one about these trained programs. The error rate is shared out evenly among all pairs (Bonferroni), so that it holds for
all of their intervals at once.

References:
    Banerjee, "Approximate confidence interval for linear functions of means of k populations when the population
    variances are not equal", 1960, Sankhya 22; Ruben, "A simple conservative and robust solution of the Behrens-Fisher
    problem", 2002, http://sankhya.isical.ac.in/search/64a1/8174fnl.html
    Bouthillier et al., "Accounting for variance in machine learning benchmarks", 2021, https://arxiv.org/abs/2103.03098
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.lab.student import t_quantile

ERROR_RATE = 0.05
"""The probability that any interval misses its difference, unless told."""

POWER = 0.8
"""The probability with which the seeds that a verdict asks for would tell a difference of the size seen."""

TRUSTED = 0.1
"""The largest share of unreliable estimates with which an entry may be told to be worse."""

MOST_SEEDS = 1000
"""The most seeds that a verdict asks for."""

_ROUNDINGS = 16  # by which two figures that are equal may differ, in units of their precision


@dataclass(frozen=True)
class Scores:
    """Figures of one entry.

    Shapes: S seeds, N data.

    Attributes:
        value: larger is better, (S, N).
        missing: what the estimate of each figure lacks on average, where that is known, (S, N).
        unreliable: 1 where the estimate cannot be trusted, and is likely too low, (S, N); NaN where that is not known.
    """

    value: Tensor
    missing: Tensor
    unreliable: Tensor


@dataclass(frozen=True)
class Verdict:
    """On two entries, of which ``first`` has the larger average.

    Attributes:
        first: its name.
        second: the other's.
        difference: of the averages, in nats per datum.
        standard_error: of the difference.
        margin: half the width of its interval; the error rate is that of the intervals of all pairs at once.
        better: whether ``first`` is.
        doubtful: whether the interval says so, but ``second`` may have lost it to importance sampling: its k-hat is
            unreliable at over a tenth of the data, or the interval says otherwise where its figures are given their
            bias, and the lead of ``first`` at data with an unreliable k-hat.
        more_seeds: how many more seeds would tell a difference of this size with probability .8; None where it is
            told, where there is one seed, and where 1,000 would not.
        more_data: likewise more test data, with a single seed.
    """

    first: str
    second: str
    difference: float
    standard_error: float
    margin: float
    better: bool
    doubtful: bool
    more_seeds: int | None
    more_data: int | None

    def __str__(self) -> str:
        size = f"{self.difference:.3g} ± {self.margin:.2g}"
        if self.better:
            return f"{self.first} is better than {self.second} by {size}"
        cannot = f"{self.first} and {self.second}: cannot tell, {size}"
        if self.doubtful:
            remedy = "draw more particles, or rank of='iwelbo'"
            return f"{cannot}, which {self.second} may owe to importance sampling; {remedy}"
        if self.difference == 0:
            return f"{cannot}; they are equal on every datum" if self.margin == 0 else cannot
        if self.more_seeds is not None:
            return f"{cannot}; about {self.more_seeds:,} more seed{'s' * (self.more_seeds > 1)} would"
        if self.more_data is not None:
            return f"{cannot}; about {self.more_data:,} more test data would"
        return f"{cannot}; {MOST_SEEDS:,} seeds would not, on these test data"


def together(seeds: Sequence[Scores]) -> Scores:
    """Scores of programs of one seed each."""
    return Scores(*(torch.cat([getattr(s, part) for s in seeds]) for part in ("value", "missing", "unreliable")))


def verdicts(scores: Mapping[str, Scores], error_rate: float) -> tuple[Verdict, ...]:
    """A verdict on each pair of entries, the best entries first."""
    order = sorted(scores, key=lambda name: -scores[name].value.double().mean().item())
    pairs = list(itertools.combinations(order, 2))
    return tuple(_verdict(a, b, scores[a], scores[b], error_rate / (2 * len(pairs))) for a, b in pairs)


def standard_error(values: Tensor) -> float:
    """Of the average of values (S, N), with seeds and data as draws from their populations; an upper bound of it."""
    return _Spread.of(values).standard_error


def _verdict(first: str, second: str, a: Scores, b: Scores, tail: float) -> Verdict:
    d = a.value.double() - b.value.double()
    rounding = _ROUNDINGS * torch.finfo(a.value.dtype).eps * max(x.value.abs().mean().item() for x in (a, b))
    difference, spread = d.mean().item(), _Spread.of(d)
    margin = spread.margin(tail) + (rounding if d.any() else 0.0)
    told = difference > margin
    # Importance sampling is low where the guide is poor: a lead that may be due to that is no lead. Where a guide is so
    # poor that k-hat is unreliable at many data, estimates are low at the others too.
    granted = d - b.missing.double()
    granted = torch.where(b.unreliable == 1, granted.clamp(max=0), granted)
    trusted = (b.unreliable == 1).double().mean().item() <= TRUSTED
    sure = trusted and granted.mean().item() > _Spread.of(granted).margin(tail) + rounding
    seeds = data = None
    if not told and difference > 0:
        seeds, data = spread.more(difference, tail)
    return Verdict(
        first, second, difference, spread.standard_error, margin, told and sure, told and not sure, seeds, data
    )


@dataclass(frozen=True)
class _Spread:
    """Mean squares of values (S, N).

    Attributes:
        seeds: variance of the averages over data.
        data: variance of the averages over seeds.
        rest: variance of what neither explains.
        num_seeds: S.
        num_data: N.
    """

    seeds: float
    data: float
    rest: float
    num_seeds: int
    num_data: int

    @classmethod
    def of(cls, values: Tensor) -> _Spread:
        values = values.double()
        s, n = values.shape
        by_seed, by_datum = values.mean(1), values.mean(0)
        if s == 1:
            return cls(0.0, by_datum.var().item(), 0.0, s, n)
        rest = values - by_seed[:, None] - by_datum + values.mean()
        return cls(by_seed.var().item(), by_datum.var().item(), rest.square().sum().item() / ((s - 1) * (n - 1)), s, n)

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.seeds / self.num_seeds + self.data / self.num_data)

    def margin(self, tail: float) -> float:
        squared = t_quantile(tail, self.num_data - 1) ** 2 * self.data / self.num_data
        if self.num_seeds > 1:
            squared += t_quantile(tail, self.num_seeds - 1) ** 2 * self.seeds / self.num_seeds
        return math.sqrt(squared)

    def more(self, difference: float, tail: float) -> tuple[int | None, int | None]:
        """How many more seeds, or with one seed how many more data, would tell a difference with ``POWER``."""

        def tells(spread: _Spread) -> bool:
            return difference > spread.margin(tail) + t_quantile(1 - POWER, _MANY) * spread.standard_error

        if self.num_seeds == 1:
            needed = (t_quantile(tail, _MANY) + t_quantile(1 - POWER, _MANY)) ** 2 * self.data / difference**2
            return None, max(1, math.ceil(needed) - self.num_data)
        shared = max(0.0, self.data - self.rest / self.num_seeds)

        def with_seeds(s: int) -> _Spread:
            return _Spread(self.seeds, shared + self.rest / s, self.rest, s, self.num_data)

        if not tells(with_seeds(MOST_SEEDS)):
            return None, None
        low, high = self.num_seeds, MOST_SEEDS
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if tells(with_seeds(middle)) else (middle, high)
        return high - self.num_seeds, None


_MANY = 1e6  # degrees of freedom of a Normal
