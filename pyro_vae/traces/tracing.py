"""One run of guide and model: the traces that every estimator reads its log-densities from.

Shapes: N data, K particles.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor

from pyro_vae.internals import is_out_of_memory
from pyro_vae.traces.dry_run import FAILURES, dry_run, where_it_fails
from pyro_vae.traces.structure import Latent, PlateError, Structure, UndrawnLatentError

Site: TypeAlias = Any  # a pyro.poutine message of type "sample"
PyroProgram = Callable[..., Any]
Hook: TypeAlias = Callable[[Site, int | None], Callable[[Tensor], Tensor]]

PARTICLES = "_particles"


def inspect(model: PyroProgram, guide: PyroProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Structure:
    """Runs a program once to learn its structure, which is taken to be static.

    Random generators, and buffers such as running means, are left as they were.

    Raises:
        UndrawnLatentError: a latent of the model that is neither in the guide nor marked for enumeration.
        ValueError: a latent to be enumerated asks for draws in place of its support.
    """
    with dry_run(args):
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    extra = _undrawn(model_trace, guide_trace)
    missing = [n for n, site in _sites(model_trace) if n in extra and site["infer"].get("enumerate") != "parallel"]
    if missing:
        raise UndrawnLatentError(missing)
    for name in extra:
        Latent.of(model_trace.nodes[name]).check_draws(name)
    stacks = [(name, site["cond_indep_stack"]) for trace in (guide_trace, model_trace) for name, site in _sites(trace)]
    plates = {frame.name: frame.dim for _, stack in stacks for frame in stack if frame.vectorized}
    outside = {
        plate: next((name for name, stack in stacks if plate not in {frame.name for frame in stack}), None)
        for plate in plates
    }
    latents = {name: Latent.of(site) for name, site in _sites(guide_trace)}
    return Structure(-min(plates.values(), default=0), frozenset(extra), outside, latents)


@dataclass(frozen=True)
class Traces:
    """A guide's trace and the trace of the model run on the guide's draws.

    Attributes:
        model: the model's trace, with the ``log_prob`` of every site, scaled and masked.
        guide: the guide's, likewise.
        num_particles: K, the number of draws held in parallel.
        particle_dim: the (negative) dim of the K draws in every ``log_prob``, or None for a single draw without one.
        enumerated: latents that only the model has, enumerated in parallel in this run.
        replay: runs model and guide again, on the values of another trace of the guide.
    """

    model: Trace
    guide: Trace
    num_particles: int
    particle_dim: int | None
    enumerated: frozenset[str]
    replay: Callable[[Literal["model", "guide"], Trace], Trace]

    def of_model(self) -> Iterator[tuple[str, Site]]:
        """Name and site of everything that the model samples or observes, in its order."""
        return _sites(self.model)

    def observed(self) -> Iterator[tuple[str, Site]]:
        """Name and model site of everything observed."""
        return ((name, site) for name, site in _sites(self.model) if site["is_observed"])

    def latents(self) -> Iterator[tuple[str, Site | None, Site]]:
        """Name, model site and guide site of every latent; no model site for one auxiliary to the guide."""
        return ((name, self.model.nodes.get(name), site) for name, site in _sites(self.guide))

    def subsamples(self) -> Trace:
        """The subsamples of data that the guide's plates have drawn, to be passed to a further run."""
        drawn = self.guide.copy()
        for name, site in self.guide.nodes.items():
            if not (site["type"] == "sample" and site_is_subsample(site)):
                del drawn.nodes[name]
        return drawn

    def with_model_at_constants(self) -> Traces:
        """The same draws as constants, in the model's densities: gradients reach its parameters alone."""
        return replace(self, model=self.replay("model", with_values(self.guide, Tensor.detach)))

    def with_guide_at_constants(self) -> Traces:
        """The same draws as constants, in the guide's densities: gradients reach its parameters alone."""
        return replace(self, guide=_guide_at(self.guide, with_values(self.guide, Tensor.detach), self.replay))


def trace_programs(
    model: PyroProgram,
    guide: PyroProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    num_particles: int = 1,
    structure: Structure | None = None,
    subsamples: Trace | None = None,
    detach: bool | Collection[str] = False,
    enumerate_: Collection[str] = (),
    hook: Hook | None = None,
) -> Traces:
    """Runs the guide, then the model on the guide's draws, for K particles in one vectorized pass.

    Args:
        model: a Pyro program, module or function.
        guide: likewise, taking the same arguments.
        args: positional arguments of both.
        kwargs: keyword arguments of both.
        num_particles: K. A plate of this size encloses the program when K > 1, left of all of its own plates.
        structure: of :func:`inspect`; needed when K > 1 or where the model has latents that the guide has not.
        subsamples: of an earlier run, whose draws are of the same data then.
        detach: make draws constants, all or those of some sites, so that no gradient reaches the parameters that made
            them.
        enumerate_: sites of the guide that take every value of their support, each in a dim left of all plates.
        hook: from a guide site and the dim of the particles to a map from the gradient of its draw to the gradient that
            is passed on to the guide. It sees what comes through the log-densities, not what comes through draws made
            from this draw.

    Raises:
        UndrawnLatentError: the model has a latent that is neither in the guide nor in ``structure``.
        ValueError: the programs run for one draw, but not in a pass for several, or for every value of a site.
    """
    run = partial(_trace_programs, model, guide, args, kwargs, structure, subsamples, detach, hook)
    try:
        return run(num_particles, enumerate_)
    except UndrawnLatentError:
        raise
    except FAILURES as error:
        site = ""
        if (num_particles > 1 or enumerate_) and not is_out_of_memory(error):
            site = where_it_fails(partial(run, num_particles, enumerate_), partial(run, 1, ()), args)
        if not site:
            raise
        over, remedy = f"{num_particles} particles", "vectorize=False, which runs them once for each particle"
        if enumerate_:
            over, remedy = f"all values of {list(enumerate_)}", f"'score' at {list(enumerate_)}"
        cause = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(
            f"Site {site!r}: expected programs that broadcast over {over}, in a dim left of all plates; got an error "
            f"here or just before: {cause}. Use {remedy}."
        ) from error


def _trace_programs(
    model: PyroProgram,
    guide: PyroProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    structure: Structure | None,
    subsamples: Trace | None,
    detach: bool | Collection[str],
    hook: Hook | None,
    num_particles: int,
    enumerate_: Collection[str],
) -> Traces:
    particle_dim = None
    nesting = float("inf") if structure is None else structure.nesting
    if num_particles > 1:
        assert structure is not None
        particle_dim = -structure.nesting - 1
        nesting = structure.nesting + 1
        particles = pyro.plate(PARTICLES, num_particles, dim=particle_dim)
        model, guide = particles(model), particles(guide)
    if structure is not None and structure.enumerated:
        model = EnumMessenger(first_available_dim=-1 - int(nesting))(model)
    if enumerate_:
        guide = EnumMessenger(first_available_dim=-1 - int(nesting))(_marked(guide, enumerate_))
    if subsamples is not None:
        guide = poutine.replay(guide, trace=subsamples)

    def replay(which: Literal["model", "guide"], trace: Trace) -> Trace:
        program = poutine.replay(model if which == "model" else guide, trace=trace)
        return _with_log_probs(poutine.trace(program).get_trace(*args, **kwargs))

    with _Detach(None if detach is True else detach) if detach else contextlib.nullcontext():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    if hook is None:
        _with_log_probs(guide_trace)
    else:
        aliases = with_values(guide_trace, lambda value: value.view_as(value))
        for _, site in _sites(aliases):
            if site["value"].requires_grad:
                site["value"].register_hook(hook(site, particle_dim))
        guide_trace = _guide_at(guide_trace, aliases, replay)
    model_trace = replay("model", guide_trace)
    undrawn = frozenset(_undrawn(model_trace, guide_trace))
    if unexpected := undrawn - (frozenset() if structure is None else structure.enumerated):
        raise UndrawnLatentError(sorted(unexpected))
    if is_validation_enabled():
        check_model_guide_match(model_trace, guide_trace, nesting)
        for trace in (guide_trace, model_trace):
            for _, site in _sites(trace):
                check_site_shape(site, nesting)  # type: ignore[arg-type]
    return Traces(model_trace, guide_trace, num_particles, particle_dim, undrawn, replay)


@contextlib.contextmanager
def unchanged_param_store() -> Iterator[None]:
    """Context manager in which programs see the parameters of Pyro's global store; puts the store back."""
    store = pyro.get_param_store()
    with store.scope(store.get_state()):
        yield


def with_values(trace: Trace, change: Callable[[Tensor], Tensor]) -> Trace:
    """A copy of a guide's trace with changed draws, whose densities are not yet computed."""
    computed = ("log_prob", "log_prob_sum", "unscaled_log_prob")
    copy = trace.copy()
    for name, site in _sites(trace):
        changed: Any = {key: value for key, value in site.items() if key not in computed}
        changed["value"] = change(site["value"])
        copy.nodes[name] = changed
    return copy


def outside_plate(site: str, plate: str) -> PlateError:
    """The error for a site that is not inside the data plate."""
    return PlateError(
        f"Site {site!r}: expected to be inside the plate {plate!r}, so that its density belongs to a datum; got it "
        f"outside. Move it into the plate, or name the plate that runs over the data with plate=..."
    )


def counted(traces: Traces, plate: str | None) -> Tensor | None:
    """Which data have a density that is not masked out, (N,); None for all."""
    sites = [*traces.observed(), *((name, site) for name, _, site in traces.latents())]
    if plate is None or any(site["mask"] is None or site["mask"] is True for _, site in sites):
        return None
    rows = [per_datum(name, site, mask_of(site), traces, plate) for name, site in sites]
    return torch.stack(rows).sum((0, 1)) > 0


def mask_of(site: Site) -> Tensor:
    """1 where a site's density counts and 0 where it is masked out, of the shape of its ``log_prob``."""
    ones = torch.ones_like(site["log_prob"])
    return ones if site["mask"] is None else ones * site["mask"]


def score_of(site: Site) -> Tensor:
    """A site's log-density, masked and not scaled: what a score-function gradient differentiates."""
    return scale_and_mask(site["unscaled_log_prob"], mask=site["mask"])


def frame_of(site: Site, plate: str) -> Any:
    """The site's frame in the plate of this name, or None."""
    return next((frame for frame in site["cond_indep_stack"] if frame.name == plate), None)


def per_datum(name: str, site: Site, value: Tensor, traces: Traces, plate: str | None) -> Tensor:
    """Sums a site's log-density (or KL) over every dim but the particles' and the data plate's.

    Args:
        name: the site's name, for messages.
        site: the site.
        value: of the shape of the site's ``log_prob``.
        traces: the run it belongs to.
        plate: name of the data plate; None to take the whole program for one datum.

    Returns:
        Shape (K, N).

    Raises:
        ValueError: the site is not inside the data plate.
    """
    kept = [] if traces.particle_dim is None else [traces.particle_dim]
    if plate is not None:
        frame = frame_of(site, plate)
        if frame is None:
            raise outside_plate(name, plate)
        kept.append(frame.dim)
    depth = max([value.dim(), *(-dim for dim in kept)])
    value = value.reshape((1,) * (depth - value.dim()) + value.shape)
    summed = [dim for dim in range(-depth, 0) if dim not in kept]
    rows = value.sum(summed) if summed else value
    return (rows if plate is not None else rows.unsqueeze(-1)).expand(traces.num_particles, -1)


def across(site: Site, coefficients: Tensor, particle_dim: int | None, plate: str | None) -> Tensor:
    """Lays coefficients (K, N) out along the value of a site, for multiplication."""
    return layout(site, particle_dim, plate)(coefficients)


def layout(site: Site, particle_dim: int | None, plate: str | None) -> Callable[[Tensor], Tensor]:
    """What :func:`across` does, without holding the site."""
    batch_dims, event_dim = len(site["fn"].batch_shape), site["fn"].event_dim
    data_dim = None if plate is None else frame_of(site, plate).dim

    def lay_out(coefficients: Tensor) -> Tensor:
        shape = [1] * batch_dims
        if particle_dim is not None:
            shape[particle_dim] = coefficients.shape[0]
        if data_dim is not None:
            shape[data_dim] = coefficients.shape[1]
        return coefficients.reshape(shape + [1] * event_dim)

    return lay_out


class _Detach(Messenger):
    """Cuts draws, of some sites or of all, off from the parameters that made them, before they are used."""

    def __init__(self, sites: Collection[str] | None) -> None:
        super().__init__()
        self.sites = sites

    def _pyro_post_sample(self, msg: Site) -> None:
        if not msg["is_observed"] and (self.sites is None or msg["name"] in self.sites):
            msg["value"] = msg["value"].detach()


def _guide_at(original: Trace, changed: Trace, replay: Callable[[Literal["guide"], Trace], Trace]) -> Trace:
    """The guide's densities at changed values.

    The density of a lone latent depends on no draw but its own, so the trace itself serves. With several, the guide is
    run again, so that the later densities are conditioned on the changed values too.
    """
    return _with_log_probs(changed) if len(list(_sites(original))) == 1 else replay("guide", changed)


def _marked(guide: PyroProgram, names: Collection[str]) -> PyroProgram:
    """The guide with these sites marked for parallel enumeration, and no others."""

    def mark(site: Site) -> Any:
        return {"enumerate": "parallel" if site["name"] in names else None}

    return poutine.infer_config(guide, mark)


def _undrawn(model_trace: Trace, guide_trace: Trace) -> list[str]:
    """Latents of the model that the guide has not."""
    return [name for name, site in _sites(model_trace) if not site["is_observed"] and name not in guide_trace]


def _with_log_probs(trace: Trace) -> Trace:
    try:
        trace.compute_log_prob(lambda name, site: not site_is_subsample(site))
    except (KeyError, NotImplementedError) as error:  # what flows of Pyro and of torch raise
        failed = next(name for name, site in _sites(trace) if "log_prob" not in site)
        raise ValueError(
            f"Site {failed!r}: expected a density at any value; got a flow without an inverse ({error}). In the guide, "
            "use gradient='pathwise'; in the model, a flow with an inverse."
        ) from error
    return trace


def _sites(trace: Trace) -> Iterator[tuple[str, Site]]:
    return (
        (name, site) for name, site in trace.nodes.items() if site["type"] == "sample" and not site_is_subsample(site)
    )
