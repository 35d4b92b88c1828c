r"""Shares of data, with intervals that hold whatever their number: exact ones of binomials and of order statistics.

References:
    Clopper, Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial", 1934,
    https://doi.org/10.1093/biomet/26.4.404
    DeLong, DeLong, Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating characteristic
    curves", 1988, https://doi.org/10.2307/2531595
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae import checks
from pyro_vae.evaluation.results import Result


@dataclass(frozen=True)
class Rate(Result):
    """A probability that data tell, and an interval for it.

    Attributes:
        value: the share of the data.
        low: lower end of the interval.
        high: upper end.
        confidence: in how many of repeated data the interval holds the probability, at least.
        num_data: data that tell it.
        method: how the interval was made.

    Example:
        >>> print(binomial_rate(3, 50, 0.95))
        0.0600, 95% interval 0.0125 to 0.1655 (Clopper-Pearson, N = 50)
    """

    value: float
    low: float
    high: float
    confidence: float
    num_data: int
    method: str

    def __str__(self) -> str:
        return (
            f"{self.value:.4f}, {100 * self.confidence:g}% interval {self.low:.4f} to {self.high:.4f} ({self.method}, "
            f"N = {self.num_data:,})"
        )


def binomial_rate(count: int, num_data: int, confidence: float) -> Rate:
    """The probability of what ``count`` of the data have, with Clopper and Pearson's interval, which is never short."""
    tail = (1 - confidence) / 2
    low = beta_quantile(tail, count, num_data - count + 1) if count else 0.0
    high = beta_quantile(1 - tail, count + 1, num_data - count) if count < num_data else 1.0
    return Rate(count / num_data, low, high, confidence, num_data, "Clopper-Pearson")


def beta_quantile(probability: float, a: int, b: int) -> float:
    """The quantile of a Beta distribution with whole parameters of at least 1.

    P(Beta(a, b) <= p) is the probability that a + b - 1 trials, each a success with probability p, have a or more.

    Example:
        >>> round(beta_quantile(0.5, 1, 1), 6), round(beta_quantile(0.05, 1, 10), 6)  # 1 - 0.95 ** 0.1
        (0.5, 0.005116)
    """
    trials = a + b - 1
    successes = torch.arange(a, trials + 1, dtype=torch.float64)
    failures = trials - successes
    log_ways = math.lgamma(trials + 1) - torch.lgamma(successes + 1) - torch.lgamma(failures + 1)
    low, high = 0.0, 1.0
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        log_terms = log_ways + successes * math.log(middle) + failures * math.log1p(-middle)
        low, high = (middle, high) if float(log_terms.exp().sum()) < probability else (low, middle)


def area_under_curve(normal: Tensor, anomalous: Tensor, confidence: float) -> Rate:
    """The probability that an anomalous score is above a normal one, ties counting half.

    With DeLong's variance on the scale of log-odds. Where the two do not overlap at all it knows no variance; then
    pairs of one datum each, which are independent, make an exact interval, and a wide one.

    Shapes: M normal and N anomalous data.

    Args:
        normal: scores, (M,).
        anomalous: scores, (N,).
        confidence: of the interval.
    """
    normal, anomalous = normal.double(), anomalous.double()
    m, n = len(normal), len(anomalous)
    above, below = _share_below(normal, anomalous), 1 - _share_below(anomalous, normal)
    value = above.mean().item()
    variance = (above.var() / n + below.var() / m).item() if min(m, n) > 1 else math.nan
    if not variance > 0:
        exact = binomial_rate(round(value * min(m, n)), min(m, n), confidence)
        return Rate(value, min(exact.low, value), max(exact.high, value), confidence, m + n, "Clopper-Pearson of pairs")
    deviate = torch.special.ndtri(torch.tensor((1 + confidence) / 2, dtype=torch.float64)).item()
    center, half = math.log(value / (1 - value)), deviate * math.sqrt(variance) / (value * (1 - value))
    low, high = (1 / (1 + math.exp(-(center + sign * half))) for sign in (-1, 1))
    return Rate(value, low, high, confidence, m + n, "DeLong")


def check_confidence(subject: str, confidence: float) -> float:
    """The confidence, if it is one."""
    return checks.number(subject, "confidence", confidence, above=0, below=1)


def _share_below(of: Tensor, values: Tensor) -> Tensor:
    """The share of some scores that lies below each value, equal ones counted half."""
    ordered = of.sort().values
    left, right = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
    return (left + right).double() / (2 * len(of))
