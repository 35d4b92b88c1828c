r"""Distributions of Pyro whose log-densities lose their digits in single precision, summed in double.

A log-probability of a count of a million is a sum of terms of ten million nats that cancel, and
:math:`\log\Gamma(x + \theta) - \log\Gamma(\theta)` at :math:`\theta = 10^4` loses a thousandth of a nat per count. So
the terms are in double precision, and their sum is rounded once.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
from torch import Tensor
from torch.nn.functional import logsigmoid


class _InDouble:
    """Before a distribution of Pyro: its log_prob, with parameters and values in double precision."""

    parameters: ClassVar[tuple[str, ...]]
    """Names of the constructor's parameters, which are attributes too."""

    def log_prob(self: Any, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        given = {name: getattr(self, name) for name in self.parameters}
        plain = type(self).__mro__[2]
        exact = plain(**{name: parameter.double() for name, parameter in given.items()}, validate_args=False)
        return exact.log_prob(value.double()).to(given[self.parameters[-1]].dtype)


class Poisson(_InDouble, dist.Poisson):
    """Pyro's, exact to a rounding at large counts.

    Example:
        >>> import torch
        >>> round(Poisson(torch.tensor(1e6)).log_prob(torch.tensor(1e6)).item(), 4)  # -log(2 pi 1e6) / 2
        -7.8267
    """

    parameters = ("rate",)


class Binomial(_InDouble, dist.Binomial):
    """Pyro's, by logits, exact to a rounding at large counts.

    Example:
        >>> import torch
        >>> coin = Binomial(torch.tensor(1e6), logits=torch.tensor(0.0))
        >>> round(coin.log_prob(torch.tensor(5e5)).item(), 4)  # -log(pi 5e5) / 2
        -7.1335
    """

    parameters = ("total_count", "logits")


class NegativeBinomial(_InDouble, dist.NegativeBinomial):  # type: ignore[misc]
    """Pyro's, by logits, exact to a rounding at large counts and dispersions.

    Example:
        >>> import torch
        >>> counts = NegativeBinomial(torch.tensor(1e4), logits=torch.tensor(-9.2))
        >>> round(counts.log_prob(torch.tensor(3.0)).item(), 4)
        -2.7711
    """

    parameters = ("total_count", "logits")

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # The dispersion of a gene is that of all cells, and so is log Gamma of it.
        theta, logits, x = _unrepeated(self.total_count).double(), self.logits.double(), value.double()
        ways = (theta + x).lgamma() - (1 + x).lgamma() - theta.lgamma()
        ways = ways.masked_fill(theta + x == 0, 0.0)
        return (ways + theta * logsigmoid(-logits) + x * logsigmoid(logits)).to(self.logits.dtype)


def _unrepeated(tensor: Tensor) -> Tensor:
    """A tensor before it was expanded, with dims of length 1."""
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


class Beta(_InDouble, dist.Beta):
    """Pyro's, exact to a rounding at large concentrations.

    Example:
        >>> import torch
        >>> sharp = Beta(torch.tensor(1e6), torch.tensor(1e6))
        >>> round(sharp.log_prob(torch.tensor(0.5)).item(), 4)  # log(4e6 / pi) / 2
        7.0285
    """

    parameters = ("concentration1", "concentration0")


class StudentT(_InDouble, dist.StudentT):  # type: ignore[misc]
    """Pyro's, exact to a rounding at many degrees of freedom, where it is a Normal.

    Example:
        >>> import torch
        >>> round(StudentT(torch.tensor(1e7), 0.0, 1.0).log_prob(torch.tensor(0.0)).item(), 4)  # -log(2 pi) / 2
        -0.9189
    """

    parameters = ("df", "loc", "scale")
