"""K draws of the latents for N data, and their log-densities, in the ways that gradient estimators need them.

Shapes: N data, K particles.

Draws in chunks hold the log-densities, (K, N), and no more. When gradients are taken, which is when their coefficients,
functions of all log-weights, are known, each chunk is drawn again, with the random numbers it was drawn with, and is
differentiated and forgotten before the next (activation checkpointing: Chen, Xu, Zhang, Guestrin, "Training deep nets
with sublinear memory cost", 2016, https://arxiv.org/abs/1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from pyro.poutine import Trace
from torch import Tensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from pyro_vae.internals import BatchNorm, return_memory, tree_leaves
from pyro_vae.traces.broadcast import check_sums
from pyro_vae.traces.densities import LogDensities, log_densities
from pyro_vae.traces.modules import modules_of
from pyro_vae.traces.structure import Structure
from pyro_vae.traces.terms import Terms, mean_of, terms_of
from pyro_vae.traces.tracing import Hook, PyroProgram, Site, Traces, counted, layout, trace_programs

Constant = Literal["model", "guide"]
_PASSES = 4  # between two returns of memory to the system, which take a few milliseconds


@dataclass(frozen=True)
class Call:
    """A model and a guide with the arguments they are run on.

    Attributes:
        model: a Pyro program.
        guide: likewise.
        args: positional arguments of both.
        kwargs: keyword arguments of both.
        num_particles: K.
        structure: of the program; None where a single vectorized draw needs none.
        plate: name of the data plate, or None to take the whole program for one datum.
        vectorize: draw the particles of a pass at once.
        chunk_size: particles of a pass at most; None for all.
    """

    model: PyroProgram
    guide: PyroProgram
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    num_particles: int
    structure: Structure | None
    plate: str | None
    vectorize: bool
    chunk_size: int | None = None

    @property
    def sizes(self) -> list[int]:
        """Particles of each pass."""
        most = (self.chunk_size or self.num_particles) if self.vectorize else 1
        return [min(most, self.num_particles - start) for start in range(0, self.num_particles, most)]

    def draw(
        self,
        *,
        detach: bool | Collection[str] = False,
        enumerate_: Collection[str] = (),
        scale_paths: bool = False,
        constant: Constant | None = None,
    ) -> Draws:
        """Runs guide and model.

        Args:
            detach: make the draws constants, all or those of some sites.
            enumerate_: sites of the guide that take every value of their support, each in a dim of its own.
            scale_paths: let :meth:`Draws.scale_paths` scale the gradients that reach the draws through the densities.
            constant: whose :meth:`Draws.at_constants` will be asked for.
        """
        options = {"detach": detach, "enumerate_": enumerate_}
        if self.chunk_size is not None and len(self.sizes) > 1:
            return Chunks(self, options, scale_paths, constant)
        draws = Draws(self, constant)
        subsamples, start = None, 0
        for size in self.sizes:
            hook = draws.path_hook(start) if scale_paths else None
            draws.runs.append(self.run(size, subsamples=subsamples, hook=hook, **options))
            subsamples, start = self.subsamples(draws.runs[0]), start + size
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

    def run(self, size: int, **options: Any) -> Traces:
        """A pass of so many particles; see :func:`~pyro_vae.traces.tracing.trace_programs`."""
        given = self.model, self.guide, self.args, self.kwargs
        return trace_programs(*given, num_particles=size, structure=self.structure, **options)

    def subsamples(self, run: Traces) -> Trace | None:
        """What a further pass is given: what is computed per datum takes all of its draws for the same datum."""
        return None if self.plate is None else run.subsamples()

    def terms(self, plate: str) -> Terms:
        """The terms of the ELBO, of one pass after the other."""
        parts, subsamples = [], None
        for size in self.sizes:
            run = self.run(size, subsamples=subsamples)
            subsamples = subsamples or self.subsamples(run)
            parts.append(terms_of([run], plate))
        return mean_of(parts)

    def replayed(self, function: Callable[[], Any]) -> Any:
        """What a function of programs returns, holding nothing of how: it is run again when gradients are taken."""
        inputs = [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]
        if torch.cuda.is_initialized():  # programs may draw there, whatever their arguments are on
            inputs.append(torch.empty(0, device="cuda"))
        # To its end, past what autograd needs of it, because an exception of torch's would run through the programs.
        with set_checkpoint_early_stop(False):
            return checkpoint(lambda *_: function(), *inputs, use_reentrant=False)


@dataclass
class Draws:
    """The result of :meth:`Call.draw`.

    Attributes:
        call: what was run.
        constant: whose densities :meth:`at_constants` has.
        runs: one vectorized run, or one for each particle.
    """

    call: Call
    constant: Constant | None = None
    runs: list[Traces] = field(default_factory=list)
    _path_scale: list[Tensor] = field(default_factory=list)

    def densities(self) -> LogDensities:
        """Log-densities of the draws, (K, N)."""
        return _joined([log_densities(run, self.call.plate) for run in self.runs])

    def at_constants(self) -> Tensor:
        """Log p(x, sg z) or log q(sg z|x), (K, N): functions of parameters, at draws that are constants."""
        assert self.constant is not None
        return torch.cat([_at_constants(run, self.call.plate, self.constant) for run in self.runs])

    def counted(self) -> Tensor | None:
        """Which data are not masked out, (N,); None for all."""
        return counted(self.runs[0], self.call.plate)

    def scale_paths(self, scale: Tensor) -> None:
        """Scales, when gradients are taken, what reaches draw k of datum n through the densities by ``scale[k, n]``."""
        self._path_scale[:] = [scale.detach()]

    def path_hook(self, start: int) -> Hook:
        """Maps the gradient of a draw to what :meth:`scale_paths` has of it; of particles from ``start`` on.

        It holds nothing of a run: autograd would hold the run by its own draw's hook, and neither would ever be freed.
        """
        plate, scale = self.call.plate, self._path_scale

        def hook(site: Site, particle_dim: int | None) -> Callable[[Tensor], Tensor]:
            lay_out, size = layout(site, particle_dim, plate), 1
            if particle_dim is not None:
                size = site["fn"].batch_shape[particle_dim]
            return lambda gradient: gradient * lay_out(scale[0][start : start + size])

        return hook


class Chunks(Draws):
    """Draws of which log-densities alone are held; ``runs`` is the first run.

    Args:
        call: what is run.
        options: of each run.
        scale_paths: as of :meth:`Call.draw`.
        constant: likewise.

    Raises:
        ValueError: a network in training that sees the particles of a pass together.
    """

    def __init__(self, call: Call, options: dict[str, Any], scale_paths: bool, constant: Constant | None) -> None:
        super().__init__(call, constant)
        if any(isinstance(module, BatchNorm) and module.training for module in modules_of([call.model, call.guide])):
            raise ValueError(
                "chunk_size: expected networks that see one draw at a time; got batch normalization. Use nn.LayerNorm "
                "or nn.GroupNorm, or leave chunk_size out."
            )
        self._options, self._scales = options, scale_paths
        self._form: LogDensities
        chunks, start = [], 0
        for size in call.sizes:
            chunks.append(call.replayed(partial(self._chunk, start, size, [])))
            start += size
        *rows, constants = map(torch.cat, zip(*chunks, strict=True))
        self._densities, self._constants = _filled(self._form, rows), constants

    def densities(self) -> LogDensities:
        return self._densities

    def at_constants(self) -> Tensor:
        return self._constants

    def _chunk(self, start: int, size: int, before: list[Tensor]) -> tuple[Tensor, ...]:
        """Log-densities of some particles.

        Args:
            start: the first.
            size: how many.
            before: their log-weights when they were first drawn, to be noted where there are none.
        """
        if start // size % _PASSES == 0:
            return_memory()
        subsamples = self.call.subsamples(self.runs[0]) if start else None
        hook = self.path_hook(start) if self._scales else None
        run = self.call.run(size, subsamples=subsamples, hook=hook, **self._options)
        densities = log_densities(run, self.call.plate)
        if not self.runs:
            self.runs.append(run)
            self._form = densities
        log_weights = densities.log_weights.detach()
        if before and not torch.allclose(log_weights, before[0], rtol=1e-3, atol=1e-3, equal_nan=True):
            raise RuntimeError(
                f"{type(self).__name__}: expected the same draws when gradients are taken; got others. Draw with "
                "pyro.sample or torch alone, keep no state between runs, or leave chunk_size out."
            )
        before.append(log_weights)
        constants = log_weights[:0] if self.constant is None else _at_constants(run, self.call.plate, self.constant)
        return *_rows(densities), constants


def _at_constants(run: Traces, plate: str | None, which: Constant) -> Tensor:
    if which == "model":
        return log_densities(run.with_model_at_constants(), plate).joint
    return log_densities(run.with_guide_at_constants(), plate).guide


def _joined(parts: list[LogDensities]) -> LogDensities:
    if len(parts) == 1:
        return parts[0]
    return _filled(parts[0], list(map(torch.cat, zip(*map(_rows, parts), strict=True))))


def _rows(densities: LogDensities) -> list[Tensor]:
    """The tensors of log-densities, (K, N) each."""
    return [densities.likelihood, *densities.priors.values(), *densities.guides.values(), *densities.scores.values()]


def _filled(form: LogDensities, rows: list[Tensor]) -> LogDensities:
    """Log-densities of the same sites, with other tensors."""
    left = iter(rows)
    likelihood = next(left)
    priors, guides, scores = ({name: next(left) for name in d} for d in (form.priors, form.guides, form.scores))
    return replace(form, likelihood=likelihood, priors=priors, guides=guides, scores=scores)
