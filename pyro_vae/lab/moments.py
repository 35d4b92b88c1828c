"""What many draws of a gradient tell: its mean, its variance, and whether its mean is the one it should be."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ROUNDINGS = 16  # what rounding may add to a gradient, in units of its precision
_BLOCK = 64  # differences of draws that are multiplied with one another


class Moments:
    """Sums over draws of a gradient g of P parameters, with mean mu and covariance S, in float64.

    Shapes: D draws, P parameters.

    Args:
        reference: the gradient that draws are compared with, (P,), or None.
    """

    def __init__(self, reference: Tensor | None = None) -> None:
        self.count = 0
        self._reference = None if reference is None else reference.double()
        self._square_products, self._num_products = 0.0, 0
        self._half_distances: list[Tensor] = []
        self._cosines: list[Tensor] = []
        self._projections: list[Tensor] = []

    def add(self, gradients: Tensor) -> None:
        """Takes in draws, (D, P), at least two of them the first time."""
        g = gradients.double()
        if not self.count:
            self._precision = torch.finfo(gradients.dtype).eps
            self._shift = g[0].clone()  # so that a variance of 0 is found to be 0
            self._sum, self._square = torch.zeros_like(g[0]), g.new_zeros(())
        self.count += len(g)
        if self._reference is not None:
            projection = g @ self._reference
            self._projections.append(projection)
            self._cosines.append(projection / (g.norm(dim=-1) * self._reference.norm()))
        g = g - self._shift
        self._sum += g.sum(0)
        self._square += g.square().sum()
        differences = g[1::2] - g[: len(g) // 2 * 2 : 2]
        self._half_distances.append(differences.square().sum(-1) / 2)
        for block in differences.split(_BLOCK):
            products = block @ block.T
            self._square_products += (products.square().sum() - products.diagonal().square().sum()).item()
            self._num_products += len(block) * (len(block) - 1)

    @property
    def mean(self) -> Tensor:
        """Mu, (P,)."""
        return self._shift + self._sum / self.count

    @property
    def variance(self) -> float:
        """Tr S, the variance summed over the parameters."""
        squares = self._square - self._sum.square().sum() / self.count
        return max(0.0, squares.item() / (self.count - 1))

    @property
    def variance_error(self) -> float:
        r"""The standard error of the variance.

        Half the squared distance of two draws varies by :math:`\mathrm{Var}(\|g - \mu\|^2) / 2 + \mathrm{tr} S^2`.
        """
        per_draw = 2 * (torch.cat(self._half_distances).var().item() - self.square_trace)
        return math.sqrt(max(0.0, per_draw) / self.count)

    @property
    def square_trace(self) -> float:
        """Tr S^2: a fourth of the mean squared product of two independent differences of draws, within its limits."""
        square = self.variance**2
        return min(square, max(square / self._sum.numel(), self._square_products / self._num_products / 4))

    def snr(self) -> tuple[float, float]:
        r"""Signal-to-noise ratio :math:`\|\mu\| / \sqrt{\mathrm{tr} S}` and its standard error."""
        variance = self.variance
        signal = math.sqrt(max(0.0, self.mean.square().sum().item() - variance / self.count))
        if variance == 0:
            return (math.inf if signal else math.nan), 0.0
        along = variance  # the most that it can be in the direction of the mean
        if self._reference is not None and bool(self._reference.any()):
            along = torch.cat(self._projections).var().item() / self._reference.square().sum().item()
        snr = signal / math.sqrt(variance)
        relative = self.variance_error / (2 * variance)
        return snr, math.sqrt(along / (self.count * variance) + (snr * relative) ** 2)

    def cosine(self) -> tuple[float, float]:
        """The average cosine of the angle between a draw and the reference, and its standard error.

        Draws of 0, which have no direction, are left out.
        """
        cosines = torch.cat(self._cosines)
        cosines = cosines[cosines.isfinite()]
        if len(cosines) < 2:
            return math.nan, math.nan
        return cosines.mean().item(), cosines.std().item() / math.sqrt(len(cosines))

    def bias(self, reference: Moments | None, magnitude: float) -> tuple[float, float, float]:
        r"""Distance of the mean from the reference's, a bound on its standard error, and the p-value of no bias.

        Args:
            reference: draws of it; None where it is exact.
            magnitude: of the numbers that gradients are the result of, which tells what rounding does to them.

        Returns:
            The distance is the root of an unbiased estimate of its square. Its variance is at most the largest
            eigenvalue of the noise's covariance C, which is at most :math:`\sqrt{\mathrm{tr} C^2}`. The p-value takes
            the squared distance of two means for a scaled chi-squared variable of the same mean and variance
            (Satterthwaite, "An approximate distribution of estimates of variance components", 1946,
            https://doi.org/10.2307/3002019).
        """
        assert self._reference is not None
        trace = self.variance / self.count
        square_trace = self.square_trace / self.count**2
        if reference is not None:
            other = reference.square_trace / reference.count**2
            trace += reference.variance / reference.count
            square_trace += other + 2 * math.sqrt(square_trace * other)  # the most that the mixed term can be
        rounding = _ROUNDINGS * self._precision * (magnitude + self._reference.norm().item())
        squared = max(0.0, (self.mean - self._reference).norm().item() - rounding) ** 2
        distance, error = math.sqrt(max(0.0, squared - trace)), square_trace**0.25
        if squared == 0 or square_trace == 0:
            return distance, error, float(squared == 0)
        half = torch.tensor([trace**2 / square_trace, squared * trace / square_trace], dtype=torch.float64) / 2
        return distance, error, torch.special.gammaincc(half[0], half[1]).item()
