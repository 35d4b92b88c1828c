"""Quantiles of Student's t distribution, which torch lacks."""

from __future__ import annotations

import functools
import math

_LARGEST = 1e6  # degrees of freedom beyond which the quantile is the Normal's to six digits
_TINY = 1e-300


@functools.lru_cache(maxsize=4096)
def t_quantile(tail: float, degrees: float) -> float:
    """The t that a Student's t variable exceeds with a probability, ``tail`` in (0, 1/2).

    Example:
        >>> round(t_quantile(0.025, 4), 4)
        2.7764
    """
    degrees = min(degrees, _LARGEST)
    low, high = 0.0, 1.0
    while _tail(high, degrees) > tail:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _tail(middle, degrees) > tail else (low, middle)
    return high


def _tail(t: float, degrees: float) -> float:
    """P(T > t), t at least 0, by the incomplete beta function."""
    a, b, x, rest = degrees / 2, 0.5, degrees / (degrees + t * t), t * t / (degrees + t * t)
    if not rest:
        return 0.5
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    if x < (a + 1) / (a + b + 2):
        return 0.5 * math.exp(log_front) / (a * _fraction(a, b, x))
    return 0.5 * (1 - math.exp(log_front) / (b * _fraction(b, a, rest)))


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's algorithm.

    References:
        NIST Digital Library of Mathematical Functions, section 8.17(v), https://dlmf.nist.gov/8.17.v
    """
    value, c, d = 1.0, 1.0, 0.0
    for i in range(1, 100_000):
        m = i // 2
        over = (a + i - 1) * (a + i)
        coefficient = (m * (b - m) if i % 2 == 0 else -(a + m) * (a + b + m)) * x / over
        d = 1 / (1 + coefficient * d or _TINY)
        c = 1 + coefficient / c or _TINY
        value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value
