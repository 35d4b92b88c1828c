r"""Bounds from Rényi's divergence of order alpha, and their limit.

.. math::  L_\alpha = \frac{1}{1-\alpha} \log \frac1K \sum_k w_k^{1-\alpha}

falls as alpha rises: alpha -> 1 is the ELBO, alpha = 0 is IWELBO, alpha < 0 lies above log p(x) as K goes to infinity,
and alpha -> -inf takes the largest weight.

References:
    Li, Turner, "Rényi divergence variational inference", 2016, https://arxiv.org/abs/1602.02311
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_vae.checks import number
from pyro_vae.elbo.estimator import Estimator
from pyro_vae.elbo.names import GradientChoice


class RenyiELBO(Estimator):
    """The Rényi bound of order alpha.

    Args:
        num_particles: K; with one draw every alpha is the ELBO.
        gradient: see :class:`~pyro_vae.elbo.estimator.Estimator`, as are ``options``.
        alpha: any number but 1; however near to 1, the value is exact to rounding.
        options: ``plate``, ``vectorize`` and ``chunk_size``.

    Raises:
        TypeError: an ``alpha`` that is no number.
        ValueError: an ``alpha`` that is 1 or not finite.

    Example:
        >>> log_weights = torch.tensor([[1.0], [3.0]]).log()
        >>> for alpha in (-1.0, 0.0, 2.0):  # the root mean square, the mean, the harmonic mean
        ...     print(alpha, round(RenyiELBO(2, alpha=alpha).bound(log_weights).exp().item(), 4))
        -1.0 2.2361
        0.0 2.0
        2.0 1.5
    """

    def __init__(
        self,
        num_particles: int = 1,
        gradient: GradientChoice = "pathwise",
        *,
        alpha: float,
        **options: Any,
    ) -> None:
        self.alpha = alpha
        super().__init__(num_particles, gradient, **options)

    def checked(self, name: str, value: Any) -> Any:
        if name == "alpha":
            value = number(type(self).__name__, name, value)
            if value == 1:
                raise ValueError(
                    f"{type(self).__name__}: expected an alpha other than 1; got 1. Use ELBO, its limit at 1."
                )
        return super().checked(name, value)

    def bound(self, log_weights: Tensor) -> Tensor:
        power = 1 - self.alpha
        extreme = (log_weights.amax(0) if power > 0 else log_weights.amin(0)).detach()  # the heaviest term of the sum
        extreme = extreme.where(extreme.isfinite(), 0.0)
        excess = power * (log_weights - extreme)
        # Near alpha = 1 the mean of the powers is 1 less a little, whose logarithm is taken without rounding it away.
        little, mean = excess.expm1().mean(0), excess.exp().mean(0)
        logarithm = torch.where(little > -0.5, little.clamp(min=-0.5).log1p(), mean.log())
        return extreme + logarithm / power

    def path_scale(self, log_weights: Tensor) -> Tensor:
        power = 1 - self.alpha
        return 1 - power * (1 - (power * log_weights).softmax(0))


class VRMax(Estimator):
    """The largest of K log-weights, the limit of alpha -> -inf: neither a lower nor an upper bound.

    Args:
        num_particles: K.
        gradient: see :class:`~pyro_vae.elbo.estimator.Estimator`, as are ``plate``, ``vectorize`` and
            ``chunk_size``.
        plate: name of the plate over the data.
        vectorize: make the draws of a pass at once.
        chunk_size: draws of a pass at most.

    Example:
        >>> round(VRMax(2).bound(torch.tensor([[1.0], [3.0]]).log()).exp().item(), 4)  # of weights whose mean is 2
        3.0
    """

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_weights.max(0).values
