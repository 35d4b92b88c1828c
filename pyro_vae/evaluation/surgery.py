r"""What the KL term of the ELBO is made of.

With the aggregate posterior :math:`q(z) = \frac1N \sum_n q(z|x_n)`,

.. math:: \frac1N \sum_n \mathrm{KL}(q(z|x_n) \| p(z)) = I_q(n; z) + \mathrm{KL}(q(z) \| p(z)).

The mutual information is what the latents tell about which datum it was, at most log N. The marginal KL is what a
better prior would save. A rate of 0 with a good likelihood is posterior collapse: the first term is 0 then.

References:
    Hoffman, Johnson, "ELBO surgery: yet another way to carve up the variational evidence lower bound", 2016,
    http://approximateinference.org/accepted/HoffmanJohnson2016.pdf
    Poole, Ozair, van den Oord, Alemi, Tucker, "On variational bounds of mutual information", 2019,
    https://arxiv.org/abs/1905.06922
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae.evaluation.modes import in_evaluation_mode
from pyro_vae.evaluation.results import Estimate, Result
from pyro_vae.evaluation.runs import default_memory, one_run
from pyro_vae.graphs.memory import peak_memory
from pyro_vae.models import Program
from pyro_vae.traces.densities import log_densities
from pyro_vae.traces.layout import by_draw, to_site
from pyro_vae.traces.tracing import Traces, inspect, trace_programs, unchanged_param_store


@dataclass(frozen=True)
class ElboSurgery(Result):
    """The terms of the ELBO, averaged over the data: elbo = expected_log_likelihood - mutual_information - marginal_kl.

    Standard errors are of the averages over the data and their draws, the aggregate posterior taken as given.

    Attributes:
        elbo: the evidence lower bound.
        expected_log_likelihood: E_q[log p(x|z)].
        rate: KL(q(z|x) || p(z)), the sum of the two below.
        mutual_information: between a latent and which of the N data it was drawn for. For data that sample a
            population, a lower bound of what the latent tells about a datum of it.
        marginal_kl: KL(q(z) || p(z)) of the N data's aggregate posterior.
        mutual_information_bound: the upper bound of the population's, with each datum left out of the mixture that
            its own latent is compared with.
    """

    elbo: Estimate
    expected_log_likelihood: Estimate
    rate: Estimate
    mutual_information: Estimate
    marginal_kl: Estimate
    mutual_information_bound: Estimate


@in_evaluation_mode
@torch.no_grad()
def elbo_surgery(
    program: Program,
    x: Tensor,
    *context: Tensor,
    num_particles: int = 1,
    memory: int | None = None,
    plate: str = "data",
) -> ElboSurgery:
    """Splits the KL term into mutual information and marginal KL, by comparing every draw with every datum.

    Args:
        program: a :class:`~pyro_vae.VAE`, or anything with ``model`` and ``guide``.
        x: data (N, ...), the first argument of model and guide, N at least 2.
        context: their further arguments.
        num_particles: K, draws per datum; time grows as K N^2.
        memory: bytes that the comparison may take; None for an amount that is fast.
        plate: name of the plate over the data.

    Raises:
        ValueError: fewer than 2 data, a number below 1, a site outside the plate; a prior that depends on the context;
            a budget for not even one draw.

    Example:
        >>> from types import SimpleNamespace
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # which tells the data below apart
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x, 0.1))
        >>> program = SimpleNamespace(model=model, guide=guide)
        >>> result = elbo_surgery(program, torch.tensor([-30.0, -10.0, 10.0, 30.0]))
        >>> round(result.mutual_information.value, 4)  # log 4
        1.3863
    """
    if len(x) < 2 or num_particles < 1:
        raise ValueError(
            f"elbo_surgery: expected at least 2 data and 1 particle; got {len(x)} and {num_particles}. Pass more."
        )
    args = (x, *context)
    run = one_run(program, args, num_particles)
    densities = log_densities(run, plate)
    if context:
        _check_prior(program, args, run, densities.prior, plate)
    draws = {name: by_draw(site, site["value"], run, plate).flatten(0, 1) for name, _, site in run.latents()}
    with unchanged_param_store(), pyro.validation_enabled(False):
        aggregate, others = _compared(program.guide, args, draws, memory, plate)

    def estimate(values: Tensor) -> Estimate:
        return Estimate.of(values.reshape(num_particles, len(x)).mean(0), num_particles)

    return ElboSurgery(
        elbo=estimate(densities.log_weights),
        expected_log_likelihood=estimate(densities.likelihood),
        rate=estimate(densities.guide - densities.prior),
        mutual_information=estimate(densities.guide.flatten() - aggregate),
        marginal_kl=estimate(aggregate - densities.prior.flatten()),
        mutual_information_bound=estimate(densities.guide.flatten() - others),
    )


def _check_prior(program: Program, args: tuple[Tensor, ...], run: Traces, prior: Tensor, plate: str) -> None:
    """Raises for a prior that depends on the context: the same draws have other densities with another datum's."""
    others = tuple(a.roll(1, 0) for a in args)
    with unchanged_param_store():
        structure = inspect(program.model, program.guide, args, {})
        moved = trace_programs(
            program.model,
            program.guide,
            others,
            {},
            num_particles=run.num_particles,
            structure=structure,
            subsamples=run.guide,  # all of its draws
        )
    if not torch.allclose(log_densities(moved, plate).prior, prior, rtol=1e-4):
        raise ValueError(
            "elbo_surgery: expected a prior that is the same for all data; got one that depends on the context, so "
            "that no KL(q(z) || p(z)) exists. Use rate_distortion."
        )


def _compared(
    guide: Callable[..., Any], args: tuple[Tensor, ...], draws: dict[str, Tensor], memory: int | None, plate: str
) -> tuple[Tensor, Tensor]:
    """Log of the average over N data of q(z_s|x_n), for S draws, (S, ...) each; and without the draw's own: (S,)."""
    structure = inspect(guide, guide, args, {})
    n, total = len(args[0]), len(next(iter(draws.values())))

    @functools.cache
    def run_of(size: int) -> Traces:
        return trace_programs(guide, guide, args, {}, num_particles=size, structure=structure)

    def of(rows: Tensor) -> Tensor:
        run = run_of(len(rows))
        trace = run.guide.copy()
        for name, _, site in run.latents():
            trace.nodes[name] = site | {"value": to_site(site, draws[name][rows].unsqueeze(1), run, plate)}
        pairs = log_densities(replace(run, guide=run.replay("guide", trace)), plate).guide
        others = pairs.scatter(1, (rows % n).unsqueeze(1), -math.inf)
        return torch.stack([pairs.logsumexp(1) - math.log(n), others.logsumexp(1) - math.log(n - 1)])

    index = torch.arange(total, device=args[0].device)
    few, more = (peak_memory(partial(of, index[:1].repeat(k))) for k in (2, 4))
    per_draw = max(1, (more - few) // 2)
    least = few - per_draw
    if memory is not None and memory < least:
        raise ValueError(
            f"elbo_surgery: expected memory to compare one draw with all data, {least:,} bytes; got {memory:,}. Allow "
            "more memory, or pass fewer data."
        )
    budget = default_memory(args[0]) if memory is None else memory
    run_of.cache_clear()
    aggregate, others = torch.cat([of(rows) for rows in index.split(max(1, 1 + (budget - least) // per_draw))], 1)
    return aggregate, others
