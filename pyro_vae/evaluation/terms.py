"""The two terms of the ELBO, per datum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.elbo.elbo import analytic_kl as closed_form_kl
from pyro_vae.elbo.tracing import per_datum, plate_nesting, trace_programs
from pyro_vae.program import Program


@dataclass(frozen=True)
class ELBOTerms:
    """Per-datum terms in nats, averaged over the particles; every tensor has shape (N,).

    Attributes:
        expected_log_likelihood: E_q[log p(x|z)], what a loss would call the negative reconstruction error.
        kl_by_site: KL(q || p) of each latent site, or its estimate.
        kl: their sum.
        elbo: ``expected_log_likelihood - kl``, a lower bound of log p(x) in expectation.
        num_particles: draws per datum.
        analytic_kl: whether ``kl`` is in closed form; else it is log q - log p at the draws that
            ``expected_log_likelihood`` uses, and may be negative.
    """

    expected_log_likelihood: Tensor
    kl_by_site: dict[str, Tensor]
    kl: Tensor
    elbo: Tensor
    num_particles: int
    analytic_kl: bool


@torch.no_grad()
def elbo_terms(
    program: Program,
    x: Tensor,
    *context: Tensor,
    num_particles: int = 1,
    analytic_kl: bool = False,
    plate: str = "data",
) -> ELBOTerms:
    """The terms of the ELBO for every datum of a batch.

    Args:
        program: a :class:`~pyro_vae.vae.VAE` or anything with ``model`` and ``guide``.
        x: data (N, ...), the first argument of model and guide.
        context: their further arguments.
        num_particles: draws of the latents per datum.
        analytic_kl: take each KL in closed form; an error where there is none.
        plate: name of the plate over the data.

    Raises:
        ValueError: ``num_particles`` below 1, a site outside the plate, no closed form where one was asked for.
    """
    if num_particles < 1:
        raise ValueError(f"elbo_terms: expected num_particles at least 1; got {num_particles}. Give a positive number.")
    args = (x, *context)
    nesting = plate_nesting(program.model, program.guide, args, {}) if num_particles > 1 else None
    traces = trace_programs(
        program.model, program.guide, args, {}, num_particles=num_particles, max_plate_nesting=nesting
    )
    log_likelihood = sum(
        (per_datum(name, site, site["log_prob"], traces, plate) for name, site in traces.observed()),
        start=torch.zeros(()),
    )
    kl_by_site = {}
    for name, model_site, guide_site in traces.latents():
        if analytic_kl:
            kl = closed_form_kl(name, model_site, guide_site)
        else:
            kl = guide_site["log_prob"] - (0.0 if model_site is None else model_site["log_prob"])
        kl_by_site[name] = per_datum(name, guide_site, kl, traces, plate).mean(0)
    expected = log_likelihood.mean(0)
    total = torch.stack(list(kl_by_site.values())).sum(0)
    return ELBOTerms(expected, kl_by_site, total, expected - total, num_particles, analytic_kl)
