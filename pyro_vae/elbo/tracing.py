"""One run of guide and model: the traces that every estimator reads its log-densities from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyro
from pyro import poutine
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

Site: TypeAlias = Any  # a pyro.poutine message of type "sample"
PyroProgram = Callable[..., Any]

_PARTICLES = "_particles"


@dataclass(frozen=True)
class Traces:
    """A guide's trace and the trace of the model replayed against it.

    Attributes:
        model: the model's sample sites, with ``log_prob`` computed, scaled and masked.
        guide: the guide's, likewise.
        num_particles: K, the number of draws held in parallel.
        particle_dim: the (negative) dim of the K draws in every ``log_prob``, or None for a single draw without one.
    """

    model: Trace
    guide: Trace
    num_particles: int
    particle_dim: int | None

    def observed(self) -> Iterator[tuple[str, Site]]:
        """Name and model site of everything observed."""
        return ((name, site) for name, site in _sample_sites(self.model) if site["is_observed"])

    def latents(self) -> Iterator[tuple[str, Site | None, Site]]:
        """Name, model site and guide site of every latent; no model site for one auxiliary to the guide."""
        return ((name, self.model.nodes.get(name), site) for name, site in _sample_sites(self.guide))


def trace_programs(
    model: PyroProgram,
    guide: PyroProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    num_particles: int = 1,
    max_plate_nesting: int | None = None,
) -> Traces:
    """Runs the guide, then the model on the guide's draws, for K particles in one vectorised pass.

    Args:
        model: a Pyro program, module or function.
        guide: likewise, taking the same arguments.
        args: positional arguments of both.
        kwargs: keyword arguments of both.
        num_particles: K. A plate of this size encloses the program when K > 1, left of all of its own plates.
        max_plate_nesting: number of nested plates of the program; needed when K > 1, see :func:`plate_nesting`.

    Raises:
        ValueError: a latent of the model has no draw in the guide.
    """
    particle_dim = None
    if num_particles > 1:
        assert max_plate_nesting is not None
        particle_dim = -max_plate_nesting - 1
        particles = pyro.plate(_PARTICLES, num_particles, dim=particle_dim)
        model, guide = particles(model), particles(guide)
    nesting = math.inf if particle_dim is None else -particle_dim
    model_trace, guide_trace = get_importance_trace("flat", nesting, model, guide, args, kwargs)
    if is_validation_enabled():
        missing = [n for n, site in _sample_sites(model_trace) if not site["is_observed"] and n not in guide_trace]
        if missing:
            raise ValueError(
                f"Guide: expected a site for every latent of the model; got none for {missing}. "
                "Sample it in the guide under the same name."
            )
    return Traces(model_trace, guide_trace, num_particles, particle_dim)


def plate_nesting(model: PyroProgram, guide: PyroProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Number of nested plates of a program, found by running it once, as Pyro's estimators do."""
    with poutine.block():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    dims = [
        frame.dim
        for trace in (prune_subsample_sites(guide_trace), prune_subsample_sites(model_trace))
        for _, site in _sample_sites(trace)
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    ]
    return -min(dims, default=0)


def per_datum(name: str, site: Site, value: Tensor, traces: Traces, plate: str) -> Tensor:
    """Sums a site's log-density (or KL) over every dim but the particles' and the data plate's.

    Args:
        name: the site's name, for messages.
        site: the site.
        value: of the shape of the site's ``log_prob``.
        traces: the run it belongs to.
        plate: name of the data plate.

    Returns:
        Shape (K, N).

    Raises:
        ValueError: the site is not inside the data plate.
    """
    frame = next((frame for frame in site["cond_indep_stack"] if frame.name == plate), None)
    if frame is None:
        raise ValueError(
            f"Site {name!r}: expected to be inside the plate {plate!r}; got plates "
            f"{[frame.name for frame in site['cond_indep_stack']]}. Move the site into the plate, or name the plate "
            "that runs over the data."
        )
    kept = [dim for dim in (traces.particle_dim, frame.dim) if dim is not None]
    depth = max(value.dim(), *(-dim for dim in kept))
    value = value.reshape((1,) * (depth - value.dim()) + value.shape)
    summed = [dim for dim in range(-depth, 0) if dim not in kept]
    return (value.sum(summed) if summed else value).expand(traces.num_particles, -1)


def _sample_sites(trace: Trace) -> Iterator[tuple[str, Site]]:
    return ((name, site) for name, site in trace.nodes.items() if site["type"] == "sample")
