"""The terms of the ELBO of a program, per datum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_vae import checks
from pyro_vae.elbo import Terms
from pyro_vae.evaluation.modes import in_evaluation_mode
from pyro_vae.evaluation.runs import one_run
from pyro_vae.evaluation.shares import by_share, joined
from pyro_vae.models import Program
from pyro_vae.traces.possible import check_possible
from pyro_vae.traces.terms import terms_of


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

    Example:
        >>> from types import SimpleNamespace
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the posterior, at which every draw tells log p(x)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> program, x = SimpleNamespace(model=model, guide=guide), torch.tensor([0.0, 2.0])
        >>> elbo_terms(program, x).elbo  # log Normal(x; 0, 2)
        tensor([-1.2655, -2.2655])
        >>> elbo_terms(program, x, analytic_kl=True).kl
        tensor([0.0966, 0.5966])
    """
    return checked_terms("elbo_terms", program, (x, *context), num_particles, analytic_kl, plate)


def checked_terms(
    subject: str, program: Program, args: tuple[Tensor, ...], num_particles: int, analytic_kl: bool, plate: str
) -> Terms:
    """The terms of one run, once they are possible; ``subject`` is who asks, for messages."""
    checks.whole(subject, "num_particles", num_particles)

    def terms(*own: Tensor) -> dict[str, Any]:
        run = one_run(program, own, num_particles)
        found = terms_of([run], plate, analytic=analytic_kl)
        check_possible(subject, found.elbo, lambda: run, plate)
        return vars(found)

    return Terms(**joined(by_share(subject, program, args, terms)))
