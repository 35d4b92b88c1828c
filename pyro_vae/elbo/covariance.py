"""The gradient of the thermodynamic objective's paper."""

from __future__ import annotations

from torch import Tensor

from pyro_vae.elbo.draws import Call
from pyro_vae.elbo.gradients import Bound, Gradient, gradient_only


class Covariance(Gradient):
    r"""The TVO paper's gradient, for any guide: no draw is differentiated.

    :math:`\nabla E_{\pi_\beta}[f] = E_{\pi_\beta}[\nabla f] + \mathrm{Cov}_{\pi_\beta}(\nabla \log \tilde\pi_\beta, f)`
    for f = log w at fixed draws, with every expectation self-normalized: biased at finite K, as the bound is.
    """

    def check(self, estimator: Bound) -> None:
        if not estimator.thermodynamic:
            raise ValueError(
                f"{type(estimator).__name__}: expected a gradient for this bound; got covariance, which is "
                "ThermodynamicELBO's. Use gradient='score'."
            )

    def loss(self, estimator: Bound, call: Call) -> Tensor:
        densities = call.draw(detach=True).densities()
        log_weights = densities.log_weights.detach()
        widths, betas, weights = estimator.path(log_weights)
        excess = log_weights - (weights * log_weights).sum(1, keepdim=True)
        model = (widths * weights * (1 + betas * excess)).sum(0)
        guide = (widths * weights * ((1 - betas) * excess - 1)).sum(0)
        surrogate = (model * densities.joint + guide * densities.guide).sum()
        return -densities.scale * (estimator.bound(log_weights).sum() + gradient_only(surrogate))
