"""The gradient of the thermodynamic objective's paper."""

from __future__ import annotations

from torch import Tensor

from pyro_vae.elbo.draws import Call
from pyro_vae.elbo.gradients import Bound, Gradient, gradient_only


class Covariance(Gradient):
    r"""The TVO paper's gradient, for any guide: no draw is differentiated.

    :math:`\nabla E_{\pi_\beta}[f] = E_{\pi_\beta}[\nabla f] + \mathrm{Cov}_{\pi_\beta}(\nabla \log \tilde\pi_\beta, f)`
    for f = log w at fixed draws, with every expectation self-normalized: biased at finite K, as the bound is.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from pyro_vae.elbo import ThermodynamicELBO
        >>> logit = torch.zeros(1, requires_grad=True)  # of a guide that is as yet the prior
        >>> def model():
        ...     with pyro.plate("data", 1):
        ...         bit = pyro.sample("bit", dist.Bernoulli(torch.full((1,), 0.5)))
        ...         pyro.sample("x", dist.Bernoulli(0.3 + 0.4 * bit), obs=torch.ones(1))
        >>> def guide():
        ...     with pyro.plate("data", 1):
        ...         pyro.sample("bit", dist.Bernoulli(logits=logit))
        >>> loss = ThermodynamicELBO(10_000, gradient="covariance", partitions=1).differentiable_loss(model, guide)
        >>> round(-torch.autograd.grad(loss, logit)[0].item(), 1)  # one partition is the ELBO: log(0.7 / 0.3) / 4
        0.2
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
