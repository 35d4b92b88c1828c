"""The terms of the ELBO of a program, per datum."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.elbo import Terms
from pyro_vae.evaluation.modes import in_evaluation_mode
from pyro_vae.models import Program
from pyro_vae.traces.possible import check_possible
from pyro_vae.traces.terms import terms_of
from pyro_vae.traces.tracing import inspect, trace_programs, unchanged_param_store


@in_evaluation_mode
@torch.no_grad()
def elbo_terms(
    program: Program,
    x: Tensor,
    *context: Tensor,
    num_particles: int = 1,
    analytic_kl: bool = False,
    plate: str = "data",
) -> Terms:
    """The terms of the ELBO for every datum of a batch, in nats.

    Args:
        program: a :class:`~pyro_vae.VAE` or anything with ``model`` and ``guide``.
        x: data (N, ...), the first argument of model and guide.
        context: their further arguments.
        num_particles: draws of the latents per datum.
        analytic_kl: take each KL in closed form; an error where there is none.
        plate: name of the plate over the data.

    Raises:
        ValueError: ``num_particles`` below 1, a site outside the plate, no closed form where one was asked for; a
            figure that is impossible, see :func:`~pyro_vae.traces.possible.check_possible`.
    """
    if num_particles < 1:
        raise ValueError(f"elbo_terms: expected num_particles at least 1; got {num_particles}. Give a positive number.")
    args = (x, *context)
    with unchanged_param_store():
        structure = inspect(program.model, program.guide, args, {})
        run = trace_programs(program.model, program.guide, args, {}, num_particles=num_particles, structure=structure)
    terms = terms_of([run], plate, analytic=analytic_kl)
    check_possible("elbo_terms", terms.elbo, lambda: run, plate)
    return terms
