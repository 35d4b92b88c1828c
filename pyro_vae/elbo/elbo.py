r"""The evidence lower bound.

For a model p(x, z) and a guide q(z|x), Jensen's inequality gives

.. math::  \log p(x) \ge E_{q(z|x)}[\log p(x|z)] - \mathrm{KL}(q(z|x) \| p(z)).

The first term is what a loss function would call reconstruction. Here it is the log-density of the sites that the
model observes, whatever they are.
"""

from __future__ import annotations

from typing import Any

import pyro.infer
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.elbo.tracing import PyroProgram, Site, Traces, plate_nesting, trace_programs


class ELBO(pyro.infer.ELBO):
    r"""The negative ELBO as a loss, with pathwise (reparameterisation) gradients.

    .. math::
        -\frac1K \sum_k \Big[\log p(x|z_k) + \beta \sum_i (\log p(z_{ik}) - \log q(z_{ik}|x))\Big],
        \quad z_k \sim q(z|x)

    summed over the data, in nats, as all of Pyro's objectives are. At ``beta=1`` it is the loss of
    ``pyro.infer.Trace_ELBO``, and with ``analytic_kl=True`` that of ``pyro.infer.TraceMeanField_ELBO``.

    Args:
        num_particles: K, draws per datum, made in one vectorised pass.
        beta: weight of the latents' terms. An objective with beta != 1 is not a bound for beta < 1, and a looser one
            for beta > 1 (Higgins et al., "beta-VAE", 2017, https://openreview.net/forum?id=Sy2fzU9gl).
        analytic_kl: take KL(q || p) in closed form in place of a difference of log-densities at the draw. There is no
            fallback: a pair of distributions without a closed form is an error.

    Raises:
        ValueError: ``num_particles`` below 1, negative ``beta``; when run, a latent without a pathwise gradient, or
            without a closed-form KL where one was asked for.

    References:
        Kingma, Welling, "Auto-Encoding Variational Bayes", 2014, https://arxiv.org/abs/1312.6114
    """

    def __init__(self, num_particles: int = 1, beta: float = 1.0, analytic_kl: bool = False) -> None:
        if num_particles < 1:
            raise ValueError(f"ELBO: expected num_particles at least 1; got {num_particles}. Give a positive number.")
        if not beta >= 0:
            raise ValueError(f"ELBO: expected beta at least 0; got {beta}. Give a non-negative number.")
        super().__init__(num_particles=num_particles, vectorize_particles=True)
        self.beta = beta
        self.analytic_kl = analytic_kl

    def differentiable_loss(self, model: PyroProgram, guide: PyroProgram, *args: Any, **kwargs: Any) -> Tensor:
        """The loss as a scalar tensor whose gradient is the estimator's."""
        traces = self._get_trace(model, guide, args, kwargs)
        total: Tensor | float = 0.0
        for _, site in traces.observed():
            total = total - site["log_prob_sum"]
        kl: Tensor | float = 0.0
        for name, model_site, guide_site in traces.latents():
            kl = kl + self._kl(name, model_site, guide_site)
        loss = (total + self.beta * kl) / self.num_particles
        return loss if isinstance(loss, Tensor) else torch.tensor(loss)

    def loss(self, model: PyroProgram, guide: PyroProgram, *args: Any, **kwargs: Any) -> float:
        """The loss as a number, without gradients."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: PyroProgram, guide: PyroProgram, *args: Any, **kwargs: Any) -> float:
        """The loss as a number; adds its gradients to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return loss.item()

    def _get_trace(
        self, model: PyroProgram, guide: PyroProgram, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Traces:
        if self.num_particles > 1 and self.max_plate_nesting == float("inf"):
            self.max_plate_nesting = plate_nesting(model, guide, args, kwargs)
        return trace_programs(
            model, guide, args, kwargs, num_particles=self.num_particles, max_plate_nesting=self.max_plate_nesting
        )

    def _kl(self, name: str, model_site: Site | None, guide_site: Site) -> Tensor:
        """Sum over the data and particles of one latent's KL, or of its log-ratio at the draws."""
        if not guide_site["fn"].has_rsample:
            raise ValueError(
                f"ELBO: expected a reparameterised guide at site {name!r}; got {type(guide_site['fn']).__name__}, "
                "whose pathwise gradient would silently be 0. Use a relaxed distribution there, or "
                "pyro.infer.Trace_ELBO, whose score-function gradient serves any guide."
            )
        if not self.analytic_kl:
            log_q = guide_site["log_prob_sum"]
            return log_q if model_site is None else log_q - model_site["log_prob_sum"]
        return analytic_kl(name, model_site, guide_site).sum()


def analytic_kl(name: str, model_site: Site | None, guide_site: Site) -> Tensor:
    """KL(q || p) of one latent in closed form, of the shape of the site's ``log_prob``, scaled and masked like it.

    Raises:
        ValueError: there is no closed form for the two distributions.
    """
    try:
        if model_site is None:
            raise NotImplementedError
        kl = kl_divergence(guide_site["fn"], model_site["fn"])
    except NotImplementedError as error:
        prior = "no distribution" if model_site is None else _describe(model_site["fn"])
        raise ValueError(
            f"Analytic KL: expected a closed form at site {name!r}; got {_describe(guide_site['fn'])} against {prior}. "
            "Use analytic_kl=False."
        ) from error
    return scale_and_mask(kl, guide_site["scale"], guide_site["mask"])


def _describe(distribution: Any) -> str:
    while hasattr(distribution, "base_dist") and type(distribution).__name__ in ("Independent", "ExpandedDistribution"):
        distribution = distribution.base_dist
    return type(distribution).__name__
