"""The likelihood p(x|z) of a program at draws of its latents that were made before.

Shapes: N data, S samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Independent

from pyro_vae.distributions import MissingAtRandom
from pyro_vae.evaluation.importance import listed
from pyro_vae.evaluation.runs import default_memory, one_run
from pyro_vae.graphs.memory import peak_memory
from pyro_vae.graphs.recording import random_state
from pyro_vae.models import Program
from pyro_vae.traces.layout import by_draw, to_site
from pyro_vae.traces.tracing import Site, Traces, unchanged_param_store


def check_likelihood(subject: str, program: Program, args: tuple[Tensor, ...], batch_size: int | None) -> None:
    """Raises for a program whose likelihood of x cannot be asked for its elements, before anything long is run.

    Args:
        subject: who asks, for messages.
        program: a model and a guide.
        args: their arguments, x the first of them; NaN in x stands for a missing value.
        batch_size: data that the program takes at once; None for any number.

    Raises:
        ValueError: x is not observed as it is, or counted in part; latents that the guide does not draw; missing
            values that the likelihood does not integrate out.
    """
    missing = bool(args[0].isnan().any())
    remedy = (
        "Wrap it, likelihoods.MissingAtRandom(likelihood), and build the program with that; train it on data with "
        "missing values, so that the guide has seen such"
    )
    likelihood = getattr(program, "likelihood", None)
    if missing and not getattr(likelihood, "missing", True):
        raise ValueError(
            f"{subject}: expected a likelihood in which NaN stands for a missing value; got "
            f"{type(likelihood).__name__}. {remedy}."
        )
    few = tuple(a[: batch_size or 2] for a in args)
    # Unchecked, since reduce_runs says what is wrong with data, and without the guide, which may belong to all of them.
    with unchanged_param_store(), pyro.validation_enabled(False), random_state(args):
        site = site_of(subject, poutine.trace(program.model).get_trace(*few), few[0])
    fn = site["fn"]
    while isinstance(fn, Independent):
        fn = fn.base_dist
    if missing and not isinstance(fn, MissingAtRandom):
        raise ValueError(
            f"{subject}: expected a likelihood in which NaN stands for a missing value; got {type(fn).__name__} at "
            f"site {site['name']!r}. Observe x with distributions.MissingAtRandom, which integrates missing values out."
        )


def check_made(subject: str, log_observed: Tensor) -> None:
    """Raises for rows in which not one particle could have made what is observed: nothing is known of the rest."""
    impossible = torch.nonzero(log_observed == -math.inf).flatten().tolist()
    if impossible:
        raise ValueError(
            f"{subject}: expected rows of observed values that the model can have made; got log p(x_observed) of -inf "
            f"for {listed(impossible)}. Look at these rows, or draw more particles."
        )


@torch.no_grad()
def at_draws(
    subject: str,
    program: Program,
    args: tuple[Tensor, ...],
    latents: dict[str, Tensor],
    function: Callable[[Any, Tensor], Tensor],
    *,
    memory: int | None,
    batch_size: int | None,
    plate: str,
) -> list[Tensor]:
    """What a function makes of p(x|z) at draws of z, for one batch of data after another.

    Args:
        subject: who asks, for messages.
        program: a model and a guide.
        args: their arguments, of N rows each.
        latents: draws (S, N, ...) of each latent of the guide, by name.
        function: from the distribution of site x and x itself to a value for each of its elements.
        memory: bytes that a batch may take; None for a default that is fast.
        batch_size: data per batch; None for as many as the memory allows.
        plate: name of the data plate.

    Returns:
        (S, n, ...) for each batch of n data, of the elements of x.
    """
    n, num_samples = len(args[0]), len(next(iter(latents.values())))

    def run(start: int, size: int) -> Tensor:
        rows = slice(start, start + size)
        batch = tuple(a[rows] for a in args)
        traces = _at({name: value[:, rows] for name, value in latents.items()}, program, batch, num_samples, plate)
        if traces.enumerated:
            raise ValueError(
                f"{subject}: expected a guide that draws every latent of the model; got {sorted(traces.enumerated)}, "
                "which the model sums out. Draw them in the guide."
            )
        site = site_of(subject, traces.model, batch[0])
        values = by_draw(site, function(site["fn"], site["value"]), traces, plate)
        assert values.shape == (num_samples, *batch[0].shape)
        return values

    if batch_size is None:
        few = min(2, n)
        with random_state(args):
            cost = peak_memory(lambda: run(0, few)) // few
        batch_size = max(1, (default_memory(args[0]) if memory is None else memory) // max(1, cost))
    return [run(start, batch_size) for start in range(0, n, batch_size)]


def _at(latents: dict[str, Tensor], program: Program, args: tuple[Tensor, ...], num_samples: int, plate: str) -> Traces:
    """A run with these draws in place of the guide's own; the guide's densities are those of its own."""
    with unchanged_param_store(), pyro.validation_enabled(False):
        own = one_run(program, args, num_samples)
        guide = own.guide.copy()
        for name, _, site in own.latents():
            changed: Any = {**site, "value": to_site(site, latents[name], own, plate)}
            guide.nodes[name] = changed
        return Traces(
            own.replay("model", guide), guide, own.num_particles, own.particle_dim, own.enumerated, own.replay
        )


def site_of(subject: str, trace: Trace, x: Tensor) -> Site:
    """The site at which the model observes x."""
    sites = [trace.nodes[name] for name in trace.observation_nodes if trace.nodes[name]["value"] is x]
    if len(sites) != 1:
        raise ValueError(
            f"{subject}: expected one site that observes x, the first argument of the model, as it is; got "
            f"{len(sites)} among {trace.observation_nodes}. Observe x whole, at one site."
        )
    site: Site = sites[0]
    mask = site["mask"]
    if not (mask is None or mask is True or (isinstance(mask, Tensor) and bool(mask.all()))):
        raise ValueError(
            f"{subject}: expected a density of x that counts in full; got a mask at site {site['name']!r}. Put NaN "
            "for what is missing, with distributions.MissingAtRandom."
        )
    return site
