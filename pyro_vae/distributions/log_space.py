r"""Latents on the simplex and between 0 and 1, by their logarithms.

A proportion of :math:`e^{-200}` is 0 in single precision, and a probability of :math:`1 - e^{-20}` is 1: a draw that
is kept as such has lost its logarithm, and a density of it is off by tens of nats at low temperatures, small
concentrations or confident logits. So these latents *are* logarithms, log y of proportions y and log-odds
log y/(1-y) of numbers between 0 and 1, from the guide's draw through the prior to what a network is given,
:func:`from_log_space`.

The density is one of the log-ratios :math:`\log y_i/y_d`, i < d, of which log y is a function. KL divergences and
bounds do not depend on the coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transforms
from torch.nn.functional import pad


class _LogSimplex(constraints.Constraint):
    """Logarithms of positive numbers that sum to 1, along the last dim."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        # log y of the largest y is known to a rounding error of itself
        error = value.logsumexp(-1).abs()
        return (value <= 0).all(-1) & (error < 1e-4)


class _LogOdds(constraints.Constraint):
    """Log y/(1-y) of numbers between 0 and 1."""

    def check(self, value: Tensor) -> Tensor:
        return value.isfinite()


log_simplex = _LogSimplex()
log_odds = _LogOdds()


def from_log_space(support: constraints.Constraint, z: Tensor) -> Tensor:
    """What a network is given for a latent: the proportions or probabilities, where z are their logarithms.

    Args:
        support: of z; any but the two of this module leave z as it is.
        z: (\\*lead, \\*event_shape).

    Example:
        >>> from_log_space(log_simplex, torch.tensor([0.25, 0.75]).log())
        tensor([0.2500, 0.7500])
        >>> from_log_space(log_odds, torch.zeros(2))
        tensor([0.5000, 0.5000])
    """
    if support is log_simplex:
        return z.exp()
    return z.sigmoid() if support is log_odds else z


class _LogSoftmaxOfRatios(transforms.Transform):
    """Log-ratios to the last proportion, (\\*, d - 1), to log-proportions (\\*, d); densities are the ratios'."""

    domain = constraints.real_vector
    codomain = log_simplex
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _LogSoftmaxOfRatios)

    def __hash__(self) -> int:
        return hash(type(self))

    def _call(self, x: Tensor) -> Tensor:
        return pad(x, (0, 1)).log_softmax(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        return y[..., :-1] - y[..., -1:]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(x[..., 0])

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], shape[-1] + 1))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], shape[-1] - 1))


biject_to.register(_LogSimplex)(lambda constraint: _LogSoftmaxOfRatios())
biject_to.register(_LogOdds)(lambda constraint: transforms.identity_transform)
