r"""Log-weights: the one tensor that every estimator is a function of.

Shapes: N data, K particles.

.. math::  \log w_{kn} = \log p(x_n, z_{kn}) - \log q(z_{kn} | x_n), \quad z_{kn} \sim q(z|x_n)

per particle k and datum n. Pooled over a batch, as some estimators of Pyro have them, weights of different data mix and
a bound becomes a property of the batch; a subsampling scale inside a logarithm lifts a bound above the evidence. Here
weights are per datum and unscaled, and the scale of the data plate multiplies what is computed from them.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from torch import Tensor

from pyro_vae import internals
from pyro_vae.checks import flag, instance, whole
from pyro_vae.internals import packed_dims
from pyro_vae.traces.structure import check_programs
from pyro_vae.traces.tracing import (
    PARTICLES,
    PyroProgram,
    Traces,
    frame_of,
    inspect,
    per_datum,
    score_of,
    trace_programs,
)


@dataclass(frozen=True)
class LogDensities:
    """Log-densities of K draws for N data, masked and unscaled; every tensor has shape (K, N).

    Shapes: N data, K particles.

    Attributes:
        likelihood: log p(x|z), of everything observed; with discrete latents of the model summed out.
        priors: log p(z) of each latent that the guide draws; but of those in ``tied``.
        guides: log q(z|x) of each latent.
        scores: what a score-function gradient differentiates: the same, without the scales that are applied where there
            is no data plate.
        scale: what the data plate's subsampling multiplies a sum over the N data by.
        tied: latents that depend on a summed-out latent of the model together with others, or with something observed,
            so that their prior is a part of ``likelihood``.
    """

    likelihood: Tensor
    priors: dict[str, Tensor]
    guides: dict[str, Tensor]
    scores: dict[str, Tensor]
    scale: float
    tied: tuple[str, ...] = ()

    @property
    def prior(self) -> Tensor:
        """Log p(z), of the latents that the guide draws.

        Raises:
            ValueError: there is none apart from the likelihood.
        """
        return _sum([*self._untied().values()], self.likelihood)

    def differences(self) -> dict[str, Tensor]:
        """Log q(z|x) - log p(z) of each latent, whose mean is the KL.

        Raises:
            ValueError: as :attr:`prior` does.
        """
        priors = self._untied()
        return {name: guide - priors[name] if name in priors else guide for name, guide in self.guides.items()}

    def _untied(self) -> dict[str, Tensor]:
        if self.tied:
            raise ValueError(
                f"Latents {list(self.tied)}: expected priors that stand apart; got ones tied to other sites by an "
                "enumerated latent of the model. Use beta=1, and no terms by site."
            )
        return self.priors

    @property
    def guide(self) -> Tensor:
        """Log q(z|x)."""
        return _sum([*self.guides.values()], self.likelihood)

    @property
    def score(self) -> Tensor:
        """The sum of :attr:`scores`."""
        return _sum([*self.scores.values()], self.likelihood)

    @property
    def joint(self) -> Tensor:
        """Log p(x, z)."""
        return sum(self.priors.values(), self.likelihood)

    @property
    def log_weights(self) -> Tensor:
        """Log p(x, z) - log q(z|x)."""
        return self.joint - self.guide


def log_densities(traces: Traces, plate: str | None) -> LogDensities:
    """Sums the log-densities of a run per particle and datum.

    Args:
        traces: the run.
        plate: name of the data plate; None to take the whole program for one datum, with all scales applied.

    Raises:
        ValueError: a site outside the plate, or of a scale that is not the data plate's.
    """
    scale = 1.0 if plate is None else _common_scale(traces, plate)
    summed = _summed_sites(traces)
    single = plate is None and traces.particle_dim is None

    def rows(name: str, site: Any) -> Tensor:
        if single:  # one draw, taken for one datum: the trace has summed it already
            return site["log_prob_sum"].reshape(1, 1)
        log_prob = site["log_prob"] if scale == 1.0 else site["log_prob"] / scale
        return per_datum(name, site, log_prob, traces, plate)

    latents = list(traces.latents())
    likelihood = [rows(name, site) for name, site in traces.observed() if name not in summed]
    priors = {name: rows(name, site) for name, site, _ in latents if site is not None and name not in summed}
    guides = {name: rows(name, site) for name, _, site in latents}
    scores = dict(guides)
    if plate is None:  # the scales are in the densities, and none belongs in the derivative of a probability
        scaled = [(name, site) for name, _, site in latents if isinstance(site["scale"], Tensor) or site["scale"] != 1]
        scores |= {name: per_datum(name, site, score_of(site), traces, None) for name, site in scaled}
    tied: tuple[str, ...] = ()
    if summed:
        together = _sum_out(traces, summed, plate)
        drawn = tuple(name for name in summed if name in guides)
        if len(drawn) == 1 and not any(site["is_observed"] for site in summed.values()):
            priors[drawn[0]] = together
        else:
            likelihood.append(together)
            tied = drawn
    like = next(iter((*guides.values(), *priors.values())), torch.zeros(1, 1))
    return LogDensities(_sum(likelihood, like), priors, guides, scores, scale, tied)


def log_weights(
    model: PyroProgram,
    guide: PyroProgram,
    *args: Any,
    num_particles: int,
    plate: str = "data",
    vectorize: bool = True,
    chunk_size: int | None = None,
    **kwargs: Any,
) -> Tensor:
    """Log-weights log p(x, z) - log q(z|x) over all sites, in nats.

    Shapes: N data, K particles.

    Args:
        model: a Pyro program, module or function.
        guide: likewise, taking the same arguments.
        args: arguments of both.
        num_particles: K, draws per datum.
        plate: name of the plate over the data; every site is inside it. Plates nested in it are summed over.
        vectorize: draw all particles in one pass; False runs the program K times, for programs that do not broadcast.
        chunk_size: draw at most this many particles at once, so that memory grows with it in place of K. The guide is
            run once for each chunk. Under ``torch.no_grad()`` only: a graph would keep all of them.
        kwargs: keyword arguments of both.

    Returns:
        Shape (K, N), masked, not scaled by the data plate's subsampling.

    Raises:
        TypeError: a number that is no whole one, a program that cannot be called.
        ValueError: a site outside the plate, a scale that is not uniform over it, a number below 1.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0)), 1.0), obs=x)
        >>> def guide(x):  # the posterior, at which every weight is p(x)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> log_weights(model, guide, torch.tensor([0.0, 2.0]), num_particles=3)  # -log(4 pi) / 2 - x^2 / 4
        tensor([[-1.2655, -2.2655],
                [-1.2655, -2.2655],
                [-1.2655, -2.2655]])
    """
    instance("log_weights", "plate", plate, str, "Give the name of the plate over the data.")
    check_programs("log_weights", model, guide)
    num_particles = whole("log_weights", "num_particles", num_particles)
    chunk = num_particles if chunk_size is None else whole("log_weights", "chunk_size", chunk_size)
    chunk = chunk if flag("log_weights", "vectorize", vectorize) else 1
    structure = inspect(model, guide, args, kwargs)
    sizes = [min(chunk, num_particles - start) for start in range(0, num_particles, chunk)]
    rows, subsamples = [], None
    for size in sizes:
        run = trace_programs(model, guide, args, kwargs, num_particles=size, structure=structure, subsamples=subsamples)
        subsamples = run.subsamples()
        rows.append(log_densities(run, plate).log_weights)
    return torch.cat(rows)


def _sum(terms: list[Tensor], like: Tensor) -> Tensor:
    return sum(terms[1:], terms[0]) if terms else torch.zeros_like(like)


def _common_scale(traces: Traces, plate: str) -> float:
    """The data plate's subsampling scale, once it is known to be the scale of every site."""
    sites = [*traces.observed(), *((name, site) for name, _, site in traces.latents())]
    sites += [(name, site) for name, site, _ in traces.latents() if site is not None]
    frames = [frame for _, site in sites if (frame := frame_of(site, plate)) is not None]
    scale = 1.0 if not frames or frames[0].full_size is None else frames[0].full_size / frames[0].size
    for name, site in sites:
        if isinstance(site["scale"], Tensor) or abs(site["scale"] - scale) > 1e-9 * scale:
            raise ValueError(
                f"Site {name!r}: expected the scale {scale:g} of the plate {plate!r}; got {site['scale']}. Weights "
                "need one scale for all sites of a datum: remove poutine.scale or the subsampling of inner plates, or "
                "use ELBO with pathwise or stl gradients, which is linear in it."
            )
    return scale


def _summed_sites(traces: Traces) -> dict[str, Any]:
    """Sites of the model that are, or depend on, latents enumerated in the model; their tensors are packed."""
    if not traces.enumerated:
        return {}
    traces.model.pack_tensors()
    nodes: dict[str, Any] = dict(traces.model.nodes)
    symbols = {internals.enumerate_symbol(nodes[name]) for name in traces.enumerated}
    return {
        name: site
        for name, site in nodes.items()
        if "log_prob" in site and symbols & set(packed_dims(site["packed"]["log_prob"]))
    }


def _sum_out(traces: Traces, sites: dict[str, Any], plate: str | None) -> Tensor:
    """The log of the sum over the enumerated latents of the product of these sites' densities, of shape (K, N)."""
    scales = {site["scale"] for site in sites.values()}
    if len(scales) > 1:
        raise ValueError(
            f"Sites {list(sites)}: expected one scale for all that depend on an enumerated latent; got "
            f"{sorted(scales)}. Scale all of them, or none."
        )
    terms: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    kept: set[str] = set()
    sized = {symbol for site in sites.values() for symbol in packed_dims(site["packed"]["log_prob"])}
    for site in sites.values():
        dim_to_symbol = internals.dim_to_symbol(site)
        frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
        # Packing leaves out dims of size 1, such as that of a single datum.
        plates = {frame.name: s for frame in frames if (s := dim_to_symbol[frame.dim]) in sized}
        kept |= {symbol for name, symbol in plates.items() if name in (PARTICLES, plate)}
        masked = packed.scale_and_mask(site["packed"]["unscaled_log_prob"], mask=site["packed"]["mask"])
        terms.setdefault(frozenset(plates.values()), []).append(masked)
    enumerated = {internals.enumerate_symbol(sites[name]) for name in traces.enumerated}
    total = packed.unpack(contract_to_tensor(terms, enumerated, frozenset(kept)), traces.model.symbol_to_dim)
    return total.reshape(traces.num_particles, -1) * (scales.pop() if plate is None else 1.0)
