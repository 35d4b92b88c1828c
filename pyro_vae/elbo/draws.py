"""K draws of the latents for N data, and their log-densities, in the ways that gradient estimators need them.

Shapes: N data, K particles.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_vae.traces.broadcast import check_sums
from pyro_vae.traces.densities import LogDensities, log_densities
from pyro_vae.traces.structure import Structure
from pyro_vae.traces.tracing import PyroProgram, Site, Traces, across, counted, trace_programs


@dataclass(frozen=True)
class Call:
    """A model and a guide with the arguments they are run on.

    Attributes:
        model: a Pyro program.
        guide: likewise.
        args: positional arguments of both.
        kwargs: keyword arguments of both.
        num_particles: K.
        structure: of the program; None where a single vectorised draw needs none.
        plate: name of the data plate, or None to take the whole program for one datum.
        vectorize: draw the K particles in one pass.
    """

    model: PyroProgram
    guide: PyroProgram
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    num_particles: int
    structure: Structure | None
    plate: str | None
    vectorize: bool

    def draw(
        self,
        *,
        detach: bool | Collection[str] = False,
        enumerate_: Collection[str] = (),
        scale_paths: bool = False,
    ) -> Draws:
        """Runs guide and model.

        Args:
            detach: make the draws constants, all or those of some sites.
            enumerate_: sites of the guide that take every value of their support, each in a dim of its own.
            scale_paths: let :meth:`Draws.scale_paths` scale the gradients that reach the draws through the densities.
        """
        draws = Draws(self)
        sizes = [self.num_particles] if self.vectorize else [1] * self.num_particles
        subsamples = None
        for size in sizes:
            hook = partial(draws.scaled, len(draws.runs)) if scale_paths else None
            draws.runs.append(
                trace_programs(
                    self.model,
                    self.guide,
                    self.args,
                    self.kwargs,
                    num_particles=size,
                    structure=self.structure,
                    subsamples=subsamples,
                    detach=detach,
                    enumerate_=enumerate_,
                    hook=hook,
                )
            )
            if self.plate is not None:  # what is computed per datum takes all of its draws for the same datum
                subsamples = draws.runs[0].subsamples()
        return draws

    def check_sums(self, names: Collection[str]) -> None:
        """Raises for programs that mix the values of latents that are summed over.

        Args:
            names: of their sites; those that the guide cannot sum over are left to other checks.
        """
        assert self.structure is not None
        latents = self.structure.guide
        summed = [n for n in names if n in latents and latents[n].enumerable and latents[n].num_samples is None]
        if summed and not self.structure.enumerated:
            size = self.num_particles if self.vectorize else 1
            check_sums(self.model, self.guide, self.args, self.kwargs, self.structure, size, summed)


@dataclass
class Draws:
    """The result of :meth:`Call.draw`.

    Attributes:
        call: what was run.
        runs: one vectorised run, or one for each particle.
    """

    call: Call
    runs: list[Traces] = field(default_factory=list)
    _path_scale: Tensor | None = None

    def densities(self) -> LogDensities:
        """Log-densities of the draws, (K, N)."""
        return _joined([log_densities(run, self.call.plate) for run in self.runs])

    def guide_at_constants(self) -> Tensor:
        """Log q(sg z|x), (K, N): a function of the guide's parameters at draws that are constants."""
        return _joined([log_densities(run.with_guide_at_constants(), self.call.plate) for run in self.runs]).guide

    def model_at_constants(self) -> Tensor:
        """Log p(x, sg z), (K, N): a function of the model's parameters at draws that are constants."""
        return _joined([log_densities(run.with_model_at_constants(), self.call.plate) for run in self.runs]).joint

    def counted(self) -> Tensor | None:
        """Which data are not masked out, (N,); None for all."""
        return counted(self.runs[0], self.call.plate)

    def scale_paths(self, scale: Tensor) -> None:
        """Scales, when gradients are taken, what reaches draw k of datum n through the densities by ``scale[k, n]``."""
        self._path_scale = scale.detach()

    def scaled(self, run: int, site: Site, gradient: Tensor) -> Tensor:
        """The gradient of a draw as :meth:`scale_paths` has it."""
        assert self._path_scale is not None
        rows = self._path_scale if self.call.vectorize else self._path_scale[run : run + 1]
        particle_dim = self.runs[run].particle_dim
        return gradient * across(site, rows, particle_dim, self.call.plate)


def _joined(parts: list[LogDensities]) -> LogDensities:
    first = parts[0]
    if len(parts) == 1:
        return first
    return replace(
        first,
        likelihood=torch.cat([part.likelihood for part in parts]),
        priors={name: torch.cat([part.priors[name] for part in parts]) for name in first.priors},
        guides={name: torch.cat([part.guides[name] for part in parts]) for name in first.guides},
        scores={name: torch.cat([part.scores[name] for part in parts]) for name in first.scores},
    )
