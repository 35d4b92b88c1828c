r"""The jackknife bound, which removes the leading bias of IWELBO.

.. math::  K L_K - \frac{K-1}{K} \sum_j L_{K-1}^{(-j)}

with :math:`L_{K-1}^{(-j)}` the bound without draw j. Its bias is O(1/K^2) where IWELBO's is O(1/K), but it is no lower
bound: it may lie above log p(x), and does so without limit for a guide that is bad enough, since its mean is
:math:`K L_K - (K-1) L_{K-1}`. It is for evaluation, and for the model's parameters; train the guide on another bound.

References:
    Nowozin, "Debiasing evidence approximations: on importance-weighted autoencoders and jackknife variational
    inference", 2018, https://openreview.net/forum?id=HyZoi-WRb
"""

from __future__ import annotations

import math

from torch import Tensor

from pyro_vae.elbo.estimator import Estimator
from pyro_vae.elbo.score import leave_one_out_logsumexp


class JackknifeELBO(Estimator):
    """Jackknife variational inference of order 1 (JVI-1), for K >= 2.

    Args:
        num_particles: K; the default of 1 is an error.
        gradient: see :class:`~pyro_vae.elbo.estimator.Estimator`, as are ``plate``, ``vectorize`` and
            ``chunk_size``.
        plate: name of the plate over the data.
        vectorize: make the draws of a pass at once.
        chunk_size: draws of a pass at most.

    Example:
        >>> import torch
        >>> from pyro_vae.elbo import IWELBO
        >>> weights = torch.tensor([0.5, 1.5])  # of two latents that the guide draws alike: p(x) = 1
        >>> log_weights = torch.cartesian_prod(weights, weights, weights).T.log()  # all that three draws may be
        >>> for loss in (IWELBO(3), JackknifeELBO(3)):
        ...     print(f"{loss.bound(log_weights).mean():.4f}")
        -0.0465
        0.0043
    """

    min_particles = 2

    def bound(self, log_weights: Tensor) -> Tensor:
        k = len(log_weights)
        whole = log_weights.logsumexp(0) - math.log(k)
        without = leave_one_out_logsumexp(log_weights) - math.log(k - 1)
        return k * whole - (k - 1) * without.mean(0)

    def path_scale(self, log_weights: Tensor) -> Tensor:
        k = len(log_weights)
        without = leave_one_out_logsumexp(log_weights)  # log of the sum S without draw j
        # F'_k = K w_k / S - (K-1)/K sum_{j != k} w_k / S_{-j}, and F'' takes the square of each fraction from it.
        whole = log_weights.softmax(0)
        first = (log_weights + leave_one_out_logsumexp(-without)).exp()
        second = (2 * (log_weights + leave_one_out_logsumexp(-2 * without) / 2)).exp()
        slope = k * whole - (k - 1) / k * first
        curvature = slope - (k * whole.square() - (k - 1) / k * second)
        return (1 - curvature / slope).where(slope != 0, slope.new_zeros(()))
