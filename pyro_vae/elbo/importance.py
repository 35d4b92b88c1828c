r"""Importance-weighted bounds: logarithms of averages of weights.

.. math::  L_K = E\Big[\log \frac1K \sum_k w_k\Big], \quad L_1 \le L_2 \le \dots \le \log p(x),

since the average of the weights is an unbiased estimate of p(x). The encoder's gradient, though, drowns in noise as K
grows (Rainforth et al., 2018), which the other bounds here and the dreg gradient remedy.

References:
    IWELBO: Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders", 2016, https://arxiv.org/abs/1509.00519
    MIWELBO, CIWELBO, PIWELBO: Rainforth et al., "Tighter variational bounds are not necessarily better", 2018,
    https://arxiv.org/abs/1802.04537
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from pyro_vae.elbo.draws import Call
from pyro_vae.elbo.estimator import Estimator
from pyro_vae.elbo.gradients import Gradient, GradientName, Pathwise, check_reparameterised, gradient_only


class IWELBO(Estimator):
    r"""The importance-weighted bound, :math:`\log \frac1K \sum_k w_k`."""

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_weights.logsumexp(0) - math.log(len(log_weights))

    def path_scale(self, log_weights: Tensor) -> Tensor:
        return log_weights.softmax(0)


class MIWELBO(Estimator):
    """The average of M importance-weighted bounds of K draws each (not the bound for missing data of the same name).

    Args:
        num_bounds: M.
        num_particles: K, draws per bound; M K draws are made.
        gradient: see :class:`~pyro_vae.elbo.estimator.Estimator`, as are ``options``.
        options: ``plate`` and ``vectorize``.
    """

    def __init__(
        self,
        num_bounds: int,
        num_particles: int,
        gradient: Gradient | GradientName = "pathwise",
        **options: Any,
    ) -> None:
        _check_counts(type(self).__name__, num_bounds, num_particles)
        self.num_bounds = num_bounds
        super().__init__(num_bounds * num_particles, gradient, **options)

    def bound(self, log_weights: Tensor) -> Tensor:
        groups = log_weights.unflatten(0, (self.num_bounds, -1))
        return groups.logsumexp(1).mean(0) - math.log(groups.shape[1])

    def path_scale(self, log_weights: Tensor) -> Tensor:
        return log_weights.unflatten(0, (self.num_bounds, -1)).softmax(1).flatten(0, 1)


class CIWELBO(Estimator):
    """beta ELBO + (1 - beta) IWELBO, of the same draws.

    Args:
        num_particles: K.
        beta: in [0, 1]: 1 is the ELBO, 0 is IWELBO.
        gradient: see :class:`~pyro_vae.elbo.estimator.Estimator`, as are ``options``.
        options: ``plate`` and ``vectorize``.
    """

    def __init__(
        self, num_particles: int, beta: float, gradient: Gradient | GradientName = "pathwise", **options: Any
    ) -> None:
        if not 0 <= beta <= 1:
            raise ValueError(f"CIWELBO: expected beta in [0, 1]; got {beta}. It mixes two bounds.")
        self.beta = beta
        super().__init__(num_particles, gradient, **options)

    def bound(self, log_weights: Tensor) -> Tensor:
        tight = log_weights.logsumexp(0) - math.log(len(log_weights))
        return self.beta * log_weights.mean(0) + (1 - self.beta) * tight

    def path_scale(self, log_weights: Tensor) -> Tensor:
        loose, tight = self.beta / len(log_weights), (1 - self.beta) * log_weights.softmax(0)
        scale = (loose + tight * log_weights.softmax(0)) / (loose + tight)
        # In place of a branch on beta, which is a tensor in a compiled step.
        return scale.where(loose + tight != 0, scale.new_zeros(()))


class PIWELBO(MIWELBO):
    """Trains the model on IWELBO of all M K draws, and the guide on MIWELBO(M, K); its value is IWELBO's.

    Args:
        num_bounds: M.
        num_particles: K, draws per bound of the guide.
        options: ``plate`` and ``vectorize``.
    """

    def __init__(self, num_bounds: int, num_particles: int, **options: Any) -> None:
        super().__init__(num_bounds, num_particles, Pathwise(), **options)

    def loss_of(self, call: Call) -> Tensor:
        draws = call.draw()
        check_reparameterised(draws, self, self.gradient)
        densities = draws.densities()
        constant = draws.model_at_constants()  # log p(x, sg z): the model's parameters, and nothing of the guide's
        all_draws = constant - densities.guide.detach()
        for_model = all_draws.logsumexp(0) - math.log(len(all_draws))
        # The model's parameters cancel, and the guide's act through the draws and log q.
        for_guide = self.bound(densities.log_weights - gradient_only(constant))
        return -densities.scale * (for_model + gradient_only(for_guide)).sum()


def _check_counts(name: str, num_bounds: int, num_particles: int) -> None:
    for what, value in (("num_bounds", num_bounds), ("num_particles", num_particles)):
        if value < 1:
            raise ValueError(f"{name}: expected {what} at least 1; got {value}. Give a positive number.")
