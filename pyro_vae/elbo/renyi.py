r"""Bounds from Rényi's divergence of order alpha, and their limit.

.. math::  L_\alpha = \frac{1}{1-\alpha} \log \frac1K \sum_k w_k^{1-\alpha}

falls as alpha rises: alpha -> 1 is the ELBO, alpha = 0 is IWELBO, alpha < 0 lies above log p(x) as K goes to infinity,
and alpha -> -inf takes the largest weight.

References:
    Li, Turner, "Rényi divergence variational inference", 2016, https://arxiv.org/abs/1602.02311
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from pyro_vae.elbo.estimator import Estimator
from pyro_vae.elbo.gradients import Gradient, GradientName


class RenyiELBO(Estimator):
    """The Rényi bound of order alpha.

    Args:
        alpha: any number but 1.
        num_particles: K; with one draw every alpha is the ELBO.
        gradient: see :class:`~pyro_vae.elbo.estimator.Estimator`, as are ``options``.
        options: ``plate`` and ``vectorize``.
    """

    def __init__(
        self, alpha: float, num_particles: int, gradient: Gradient | GradientName = "pathwise", **options: Any
    ) -> None:
        if alpha == 1 or not math.isfinite(alpha):
            raise ValueError(
                f"RenyiELBO: expected a finite alpha other than 1; got {alpha}. Use ELBO for its limit at 1."
            )
        self.alpha = alpha
        super().__init__(num_particles, gradient, **options)

    def bound(self, log_weights: Tensor) -> Tensor:
        power = 1 - self.alpha
        return ((power * log_weights).logsumexp(0) - math.log(len(log_weights))) / power

    def path_scale(self, log_weights: Tensor) -> Tensor:
        power = 1 - self.alpha
        return 1 - power * (1 - (power * log_weights).softmax(0))


class VRMax(Estimator):
    """The largest of K log-weights, the limit of alpha -> -inf: neither a lower nor an upper bound."""

    smooth = False

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_weights.max(0).values
