r"""Hamiltonian Monte Carlo on the latents of a program, for many chains and data at once.

It leaves the densities on a path from a start r to the posterior as they are,

.. math:: \pi_\beta(z) \propto r(z)^{1 - \beta} p(x, z)^\beta, \text{ from the prior } p(z) p(x|z)^\beta:

a momentum is drawn, the pair follows Hamilton's equations by leapfrog steps, and the end is accepted with probability
min(1, exp(-error)).

References:
    Neal, "MCMC using Hamiltonian dynamics", 2011, https://arxiv.org/abs/1206.1901
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.distributions import log_odds
from pyro_vae.graphs.recording import Function, record
from pyro_vae.traces.densities import log_densities
from pyro_vae.traces.layout import for_each_draw
from pyro_vae.traces.tracing import Site, across, inspect, per_datum, trace_programs, unchanged_param_store

Latents = dict[str, Tensor]


class TemperedPosterior:
    """r(z)^(1 - beta) p(x, z)^beta of a model, with gradients, for K chains and N data.

    Shapes: N data, K chains.

    Args:
        subject: who asks, for messages.
        model: a Pyro program.
        args: its arguments.
        num_chains: K.
        plate: name of the plate over the data.
        guide: the start r; None for the prior.

    Raises:
        ValueError: a latent that is not a real vector, or that the guide alone has; densities that change from one
            evaluation to the next.
    """

    def __init__(
        self,
        subject: str,
        model: Callable[..., Any],
        args: tuple[Tensor, ...],
        num_chains: int,
        plate: str,
        guide: Callable[..., Any] | None = None,
    ) -> None:
        self._plate, self._from_guide = plate, guide is not None
        start = prior_of(model) if guide is None else guide
        with unchanged_param_store():
            structure = inspect(model, start, args, {})
        self._trace = partial(trace_programs, model, start, args, {}, num_particles=num_chains, structure=structure)
        with unchanged_param_store():
            self._run = self._trace()
        self.sites: dict[str, Site] = {name: site for name, _, site in self._run.latents()}
        for name, of_model, site in self._run.latents():
            if of_model is None:
                raise ValueError(
                    f"{subject}: expected a guide that draws the model's latents; got {name!r}, which the model has "
                    "not. Use start='prior'."
                )
            if not is_real(site["fn"].support):
                raise ValueError(
                    f"{subject}: expected latents that are real vectors, for Hamiltonian Monte Carlo; got support "
                    f"{site['fn'].support} at site {name!r}. Use log_marginal_likelihood."
                )
        self._evaluate: Function = self._gradient
        z = self.draw()
        evaluated = self(0.5, z)
        if not _close(self(0.5, z), evaluated):
            raise ValueError(
                f"{subject}: expected densities that are functions of the latents; got other values at the same "
                "latents. Take random steps, such as dequantization or dropout, out of the model."
            )
        # The same operations each time, without Pyro's handlers, which take most of the time of a small model.
        half = next(iter(z.values())).new_tensor(0.5)
        with unchanged_param_store(), pyro.validation_enabled(False):
            recorded = record(self._gradient, half, *z.values())
        if recorded is not None and _close(recorded(half, *z.values()), evaluated):
            self._evaluate = recorded

    def draw(self) -> Latents:
        """Draws from the start, one for each chain and datum."""
        with unchanged_param_store(), pyro.validation_enabled(False):
            return {name: site["value"] for name, _, site in self._trace().latents()}

    def lay_out(self, latents: Latents) -> Latents:
        """Values with the shapes of the sites, (N, ...), for every chain."""
        return {name: for_each_draw(site, latents[name]).clone() for name, site in self.sites.items()}

    def __call__(self, beta: float, z: Latents) -> list[Tensor]:
        """Log r(z) and the log-weight log p(x, z) - log r(z), (K, N) each; the gradient of log r + beta log-weight.

        From the prior they are log p(z) and log p(x|z).
        """
        first = next(iter(z.values()))
        with unchanged_param_store(), pyro.validation_enabled(False):
            return self._evaluate(first.new_tensor(beta), *z.values())

    def transition(self, beta: float, z: Latents, step_size: Tensor, num_steps: int) -> tuple[Latents, Tensor, Tensor]:
        """One step of HMC.

        Args:
            beta: inverse temperature.
            z: where the chains are.
            step_size: (N,); each chain's is multiplied by a draw from (0.8, 1.2), against orbits that close.
            num_steps: leapfrog steps.

        Returns:
            Where the chains are now, the log-weight there and the acceptance probability, (K, N) each.
        """
        start, log_weight, *gradient = self(beta, z)
        steps = step_size * (0.8 + 0.4 * torch.rand_like(log_weight))
        scale = {n: across(site, steps, self._run.particle_dim, self._plate) for n, site in self.sites.items()}
        momentum = {name: torch.randn_like(value) for name, value in z.items()}
        before = start + beta * log_weight - self._kinetic(momentum)
        moved = z
        for _ in range(num_steps):
            half = {n: momentum[n] + scale[n] / 2 * g for n, g in zip(z, gradient, strict=True)}
            moved = {n: moved[n] + scale[n] * half[n] for n in z}
            start, new_log_weight, *gradient = self(beta, moved)
            momentum = {n: half[n] + scale[n] / 2 * g for n, g in zip(z, gradient, strict=True)}
        error = start + beta * new_log_weight - self._kinetic(momentum) - before
        probability = error.nan_to_num(nan=-torch.inf).clamp(max=0).exp()  # a path that diverges is refused
        accepted = torch.rand_like(probability) < probability
        mask = {n: across(site, accepted, self._run.particle_dim, self._plate) for n, site in self.sites.items()}
        z = {n: torch.where(mask[n], moved[n], z[n]) for n in z}
        return z, torch.where(accepted, new_log_weight, log_weight), probability

    def _kinetic(self, momentum: Latents) -> Tensor:
        """Half the squared momentum, (K, N)."""
        energy = torch.zeros(())
        for name, site in self.sites.items():
            square = momentum[name].square()
            event = tuple(range(-site["fn"].event_dim, 0))
            energy = energy + per_datum(name, site, square.sum(event) if event else square, self._run, self._plate) / 2
        return energy

    def _gradient(self, beta: Tensor, *values: Tensor) -> list[Tensor]:
        leaves = [value.detach().requires_grad_() for value in values]
        trace = self._run.guide.copy()
        for (name, site), leaf in zip(self.sites.items(), leaves, strict=True):
            trace.nodes[name] = site | {"value": leaf}
        with torch.enable_grad():
            run = replace(self._run, model=self._run.replay("model", trace))
            if self._from_guide:
                densities = log_densities(replace(run, guide=self._run.replay("guide", trace)), self._plate)
                start, log_weight = densities.guide, densities.log_weights
            else:
                densities = log_densities(run, self._plate)
                start, log_weight = densities.prior, densities.likelihood
            gradients = torch.autograd.grad((start + beta * log_weight).sum(), leaves)
        return [start.detach(), log_weight.detach(), *gradients]


def prior_of(model: Callable[..., Any]) -> Callable[..., Any]:
    """The model without its data, which draws from the prior.

    What the model sums over is drawn too, for each draw afresh, and then forgotten. A block would hide it from the
    plate over the draws, which would all be given the same.
    """
    forgotten: Any = {"enumerate": None, "is_auxiliary": True, "_do_not_trace": True}
    drawn = poutine.infer_config(model, lambda site: forgotten if _is_summed(site) else {})
    return poutine.block(drawn, hide_fn=lambda site: site["type"] == "sample" and site["is_observed"])


def _is_summed(site: Site) -> bool:
    return site["type"] == "sample" and not site["is_observed"] and site["infer"].get("enumerate") == "parallel"


def _close(values: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(values, others, strict=True))


def is_real(support: Any) -> bool:
    """Whether latents of this support are real vectors."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support in (constraints.real, constraints.real_vector, log_odds)
