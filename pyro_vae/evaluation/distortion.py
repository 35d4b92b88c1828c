r"""Rate and distortion: what a code for x by way of z costs, and what it loses.

The rate is KL(q(z|x) || p(z)), the distortion :math:`-E_q[\log p(x|z)]`, and -ELBO is their sum. Training with the
weight beta on the rate trades one for the other, and programs trained at several beta trace the curve of what a family
of models can do.

References:
    Alemi, Poole, Fischer, Dillon, Saurous, Murphy, "Fixing a broken ELBO", 2018, https://arxiv.org/abs/1711.00464
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_vae import checks
from pyro_vae.evaluation.modes import in_evaluation_mode
from pyro_vae.evaluation.results import Estimate, Result, rounded, table
from pyro_vae.evaluation.runs import in_parts, one_run
from pyro_vae.models import Program
from pyro_vae.traces.possible import check_possible
from pyro_vae.traces.terms import Terms, terms_of


@dataclass(frozen=True)
class RateDistortion(Result):
    """Rate and distortion of a program, averaged over data, in nats.

    Attributes:
        rate: KL(q(z|x) || p(z)).
        distortion: -E_q[log p(x|z)].
        elbo: minus their sum.
        rate_by_site: the rate of each latent.
        analytic_kl: whether rates are in closed form.
    """

    rate: Estimate
    distortion: Estimate
    elbo: Estimate
    rate_by_site: dict[str, Estimate]
    analytic_kl: bool


@dataclass(frozen=True)
class RateDistortionCurve(Result):
    """Rate and distortion over beta.

    Attributes:
        points: by beta, ascending.
    """

    points: dict[float, RateDistortion]

    def estimates(self) -> dict[str, Estimate]:
        return {
            f"{name}, beta={beta:g}": value
            for beta, point in self.points.items()
            for name, value in (("rate", point.rate), ("distortion", point.distortion), ("elbo", point.elbo))
        }

    def __str__(self) -> str:
        rows = [
            [
                f"{beta:g}",
                *(part for e in (p.rate, p.distortion, p.elbo) for part in rounded(e.value, e.standard_error)),
                f"{p.rate.num_data:,}",
                f"{p.rate.num_particles:,}",
            ]
            for beta, p in self.points.items()
        ]
        header = ["beta", "rate", "± s.e.", "distortion", "± s.e.", "elbo", "± s.e.", "data", "particles"]
        return table(header, rows) + "\nin nats per datum"


@in_evaluation_mode
@torch.no_grad()
def rate_distortion(
    program: Program,
    x: Tensor,
    *context: Tensor,
    num_particles: int = 1,
    analytic_kl: bool = False,
    memory: int | None = None,
    plate: str = "data",
) -> RateDistortion:
    """Rate and distortion of a program on some data.

    Args:
        program: a :class:`~pyro_vae.VAE`, or anything with ``model`` and ``guide``.
        x: data (N, ...), the first argument of model and guide.
        context: their further arguments.
        num_particles: draws of the latents per datum.
        analytic_kl: take each KL in closed form; an error where there is none.
        memory: bytes that the draws in flight may take; None for an amount that is fast. Data that do not fit are run
            one part after another.
        plate: name of the plate over the data.

    Raises:
        ValueError: ``num_particles`` below 1, a site outside the plate, no closed form where one was asked for; a
            budget for less than one datum.

    Example:
        >>> from types import SimpleNamespace
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # a code that loses nothing, far from the prior
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x, 1e-3))
        >>> program = SimpleNamespace(model=model, guide=guide)
        >>> result = rate_distortion(program, torch.full((100,), 2.0), analytic_kl=True)
        >>> round(result.rate.value, 2), round(result.distortion.value, 2)  # 2 + log 1000 - 1/2, log(2 pi) / 2
        (8.41, 0.92)
    """
    checks.whole("rate_distortion", "num_particles", num_particles)

    def terms_on(args: tuple[Tensor, ...]) -> Terms:
        return terms_of([one_run(program, args, num_particles)], plate, analytic=analytic_kl)

    args = (x, *context)
    parts = [terms_on(part) for part in in_parts("rate_distortion", args, terms_on, memory)]
    rate, elbo = (torch.cat([getattr(part, name) for part in parts]) for name in ("kl", "elbo"))
    check_possible("rate_distortion", elbo, partial(one_run, program, args), plate)
    return RateDistortion(
        rate=Estimate.of(rate, num_particles),
        distortion=Estimate.of(torch.cat([-part.expected_log_likelihood for part in parts]), num_particles),
        elbo=Estimate.of(elbo, num_particles),
        rate_by_site={
            name: Estimate.of(torch.cat([part.kl_by_site[name] for part in parts]), num_particles)
            for name in parts[0].kl_by_site
        },
        analytic_kl=analytic_kl,
    )


@partial(checks.arguments, "rate_distortion_curve")
def rate_distortion_curve(
    programs: Mapping[float, Program],
    x: Any,
    *context: Tensor,
    num_particles: int = 1,
    analytic_kl: bool = False,
    plate: str = "data",
) -> RateDistortionCurve:
    """Rate and distortion of programs that were trained with different weights of the rate.

    Args:
        programs: by their beta, as ``fit(..., loss=elbo.ELBO(beta=beta))`` trains them.
        x: see :func:`rate_distortion`, as are all other arguments.
        context: further arguments of model and guide.
        num_particles: draws of the latents per datum.
        analytic_kl: take each KL in closed form.
        plate: name of the plate over the data.

    Raises:
        ValueError: as :func:`rate_distortion`.

    Example:
        >>> from types import SimpleNamespace
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def best(beta):  # of all Normal guides, where rates weigh beta
        ...     def guide(x):
        ...         with pyro.plate("data", len(x)):
        ...             pyro.sample("z", dist.Normal(x / (1 + beta), (beta / (1 + beta)) ** 0.5))
        ...
        ...     return SimpleNamespace(model=model, guide=guide)
        >>> programs = {beta: best(beta) for beta in (3.0, 1.0)}
        >>> curve = rate_distortion_curve(programs, torch.tensor([2.0]), analytic_kl=True)
        >>> {beta: round(point.rate.value, 4) for beta, point in curve.points.items()}
        {1.0: 0.5966, 3.0: 0.1438}
    """
    if not isinstance(programs, Mapping) or not programs:
        raise TypeError(
            f"rate_distortion_curve: expected programs by their beta; got {type(programs).__name__}. Give a dictionary."
        )
    points = {
        beta: rate_distortion(
            programs[beta], x, *context, num_particles=num_particles, analytic_kl=analytic_kl, plate=plate
        )
        for beta in sorted(programs)
    }
    return RateDistortionCurve(points)


def reconstruction_error(
    program: Program, x: Tensor, *context: Tensor, num_particles: int = 1, plate: str = "data"
) -> Estimate:
    """-E_q[log p(x|z)] in nats: how far a reconstruction is off, in the likelihood's own measure.

    Squared errors compare only under one and the same Normal likelihood, and mean nothing for counts or binary pixels.

    Args:
        program: see :func:`rate_distortion`, as are all other arguments.
        x: data (N, ...).
        context: further arguments of model and guide.
        num_particles: draws of the latents per datum.
        plate: name of the plate over the data.

    Raises:
        ValueError: as :func:`rate_distortion`.

    Example:
        >>> from types import SimpleNamespace
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # whatever x is
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(0 * x, 1e-3))
        >>> program = SimpleNamespace(model=model, guide=guide)
        >>> round(reconstruction_error(program, torch.full((100,), 2.0)).value, 2)  # log(2 pi) / 2 + 2^2 / 2
        2.92
    """
    return rate_distortion(program, x, *context, num_particles=num_particles, plate=plate).distortion
