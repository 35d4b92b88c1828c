"""Runs of a program that together make K draws for N data, each small enough for a memory budget.

Shapes: N data, K particles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

import pyro
import torch
from pyro.poutine.util import is_validation_enabled
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae import checks
from pyro_vae.evaluation.shares import by_share, is_first
from pyro_vae.graphs.memory import peak_memory
from pyro_vae.graphs.recording import Recorded, random_state, recorded
from pyro_vae.internals import return_memory
from pyro_vae.models import Program
from pyro_vae.traces.densities import log_densities
from pyro_vae.traces.layout import by_draw
from pyro_vae.traces.structure import Structure
from pyro_vae.traces.tracing import Traces, inspect, trace_programs, unchanged_param_store

DEFAULT_MEMORY = 2**23
"""Bytes that a run takes on a CPU unless told: little enough for its caches, and for the system's allocator."""

_DEFAULT_MEMORY_OF_DEVICES = 2**30

_WORTH_RECORDING = 100
"""Runs of one shape beyond which it saves time to record one and check it."""

_BATCHES_BETWEEN_RETURNS = 16


@dataclass(frozen=True)
class Batch:
    """One run.

    Shapes: N data, K particles.

    Attributes:
        log_weights: (K, N), for some of the particles and data.
        latents: draws of the guide, (K, N, ...), by name; none unless asked for.
    """

    log_weights: Tensor
    latents: dict[str, Tensor]


def guide_run(guide: Callable[..., Any], args: tuple[Tensor, ...], num_particles: int) -> Traces:
    """Draws of the guide for all data at once, which as its own model spares the work of the program's."""
    with unchanged_param_store():
        structure = inspect(guide, guide, args, {})
        return trace_programs(guide, guide, args, {}, num_particles=num_particles, structure=structure)


@torch.no_grad()
def one_run(program: Program, args: tuple[Tensor, ...], num_particles: int = 1) -> Traces:
    """A run of a program on all data at once, with so many draws for each."""
    with unchanged_param_store():
        structure = inspect(program.model, program.guide, args, {})
        return trace_programs(program.model, program.guide, args, {}, num_particles=num_particles, structure=structure)


@torch.no_grad()
def at_latents(run: Traces, latents: dict[str, Tensor]) -> Traces:
    """A run again, at other values of its latents, of the shapes of their sites."""
    trace = run.guide.copy()
    for name, value in latents.items():
        trace.nodes[name] = trace.nodes[name] | {"value": value}
    with unchanged_param_store():
        return replace(run, guide=run.replay("guide", trace), model=run.replay("model", trace))


def weighted_run(
    program: Program, args: tuple[Tensor, ...], num_particles: int, structure: Structure, plate: str
) -> tuple[Traces, Tensor]:
    """A run of a program, and log-weights (K, N) of the guide's draws."""
    run = trace_programs(program.model, program.guide, args, {}, num_particles=num_particles, structure=structure)
    return run, log_densities(run, plate).log_weights


def default_memory(x: Tensor) -> int:
    """Bytes that a run on these data takes unless told."""
    return DEFAULT_MEMORY if x.device.type == "cpu" else _DEFAULT_MEMORY_OF_DEVICES


def in_parts(
    subject: str, args: tuple[Tensor, ...], run: Callable[[tuple[Tensor, ...]], object], memory: int | None
) -> list[tuple[Tensor, ...]]:
    """The data in parts, as few as keep a run on each of them within a memory budget.

    Args:
        subject: who asks, for messages.
        args: of a program, of N rows each.
        run: what takes memory, on some of the data; tried on one datum and on two, with random generators left as they
            were.
        memory: bytes; None for a default that is fast.

    Raises:
        ValueError: a number below 1; one datum does not fit the budget; parameters that belong to the data, which
            cannot be parted.
    """
    given = None if memory is None else checks.whole(subject, "memory", memory)
    budget = default_memory(args[0]) if given is None else given

    def cost(size: int) -> int:
        with unchanged_param_store(), random_state(args):
            return peak_memory(lambda: run(tuple(a[:size] for a in args)))

    try:
        one = cost(1)
        two = cost(2) if len(args[0]) > 1 else one
    except ValueError as error:
        if "Shape mismatch" not in str(error):
            raise
        if given is None:
            return [args]
        raise ValueError(
            f"{subject}: expected programs for any part of the data, for memory; got an error of one datum "
            f"({str(error).splitlines()[0]}). Leave memory out where parameters belong to the data."
        ) from error
    if one > budget:
        raise ValueError(
            f"{subject}: expected memory for one datum at a time, {one:,} bytes; got {budget:,}. Allow more memory, or "
            "draw fewer particles."
        )
    size = 1 + (budget - one) // max(1, two - one)
    return list(zip(*(a.split(size) for a in args), strict=True))


Weigh: TypeAlias = Callable[[Program, tuple[Tensor, ...], int, Structure, str], tuple[Traces, Tensor]]
T_co = TypeVar("T_co", covariant=True)


class Reducer(Protocol[T_co]):
    """Takes in the runs of one batch of data, one after another."""

    def add(self, batch: Batch) -> None:
        """Takes in a run, which is then dropped."""

    def finish(self) -> T_co:
        """What is kept of all of them."""


@torch.no_grad()
def reduce_runs(
    subject: str,
    program: Program,
    args: tuple[Tensor, ...],
    reducer: Callable[[], Reducer[T_co]],
    *,
    num_particles: int,
    memory: int | None,
    reserve: int = 0,
    latents: bool = False,
    weigh: Weigh = weighted_run,
    batch_size: int | None,
    plate: str,
    progress: bool,
) -> list[T_co]:
    """Runs a program until there are K draws for each datum; all draws of one batch of data, then the next batch.

    Args:
        subject: who asks, for messages.
        program: a model and a guide.
        args: their arguments, of N rows each.
        reducer: makes what takes in the runs of a batch of data.
        num_particles: K.
        memory: bytes that a run and its reduction may take; None for a default that is fast.
        reserve: bytes per datum that a reducer comes to hold.
        latents: also return the draws.
        weigh: runs the program, for draws and their log-weights.
        batch_size: data per run; None for as few as leave memory for K particles, since the guide's share of a run
            falls with its particles.
        plate: name of the data plate.
        progress: show a bar.

    Returns:
        What a reducer keeps of each batch of data, in order.

    Raises:
        ValueError: a number below 1; not even one particle fits the budget; a guide that takes other data than N; data
            that the model cannot have made, or NaN densities.
    """
    check_arguments(subject, program, args, num_particles=num_particles, batch_size=batch_size, memory=memory)
    bar = tqdm(total=num_particles, disable=not (progress and is_first()), unit="draw", unit_scale=True)

    def reduced(*own: Tensor) -> list[T_co]:
        given = own, reducer, num_particles, memory, reserve, latents, weigh, batch_size, plate
        return _reduced(subject, program, *given, bar)

    # Where all are to be run at once, because a guide's parameters belong to them, there are no shares.
    whole = batch_size is not None and batch_size >= len(args[0])
    with bar:
        return [kept for part in by_share(subject, program, args, reduced, whole=whole) for kept in part]


def _reduced(
    subject: str,
    program: Program,
    args: tuple[Tensor, ...],
    reducer: Callable[[], Reducer[T_co]],
    num_particles: int,
    memory: int | None,
    reserve: int,
    latents: bool,
    weigh: Weigh,
    batch_size: int | None,
    plate: str,
    bar: tqdm,
) -> list[T_co]:
    """What :func:`reduce_runs` returns, of one process's data."""
    n = len(args[0])
    batch_size = None if batch_size is None else min(batch_size, n)
    runs, per_datum, per_draw = _trial(
        subject, args, batch_size or min(2, n), lambda trial: _Runs(program, trial, plate, latents, weigh), reducer
    )
    memory = default_memory(args[0]) if memory is None else memory
    per_datum += reserve
    least = (batch_size or 1) * (per_datum + per_draw)
    if least > memory:
        raise ValueError(
            f"{subject}: expected memory for one draw at a time, {least:,} bytes; got {memory:,}. Allow more "
            "memory, or pass fewer data at once."
        )
    given = batch_size
    if batch_size is None:
        batch_size = max(1, min(n, memory // (per_datum + num_particles * per_draw)))
    particles = max(1, (memory // batch_size - per_datum) // per_draw)
    particles = min(particles, num_particles)
    # Runs of one size, where that can be, need one record.
    particles = next((k for k in range(particles, particles * 2 // 3, -1) if num_particles % k == 0), particles)
    runs.check(subject, args, given or max(1, memory // (per_datum + per_draw)))
    batches = list(zip(*(a.split(batch_size) for a in args), strict=True))
    full = [batch for batch in batches if len(batch[0]) == batch_size]
    if len(full) * (num_particles // particles) >= _WORTH_RECORDING:
        runs.record(particles, full[:2], memory)
    kept = []
    bar.total = n * num_particles
    for batch in batches:
        part, draw = reducer(), runs.of(batch)
        for done in range(0, num_particles, particles):
            count = min(particles, num_particles - done)
            part.add(draw(count))
            bar.update(count * len(batch[0]))
        kept.append(part.finish())
        if len(kept) % _BATCHES_BETWEEN_RETURNS == 0:
            return_memory()  # which would grow by .15 to .6 MB with every datum of K = 5,000
    return kept


def _trial(
    subject: str,
    args: tuple[Tensor, ...],
    size: int,
    make: Callable[[tuple[Tensor, ...]], _Runs],
    reducer: Callable[[], Reducer[object]],
) -> tuple[_Runs, int, int]:
    """What runs a program, and the bytes per datum and per draw that a run on some of the data takes."""
    try:
        with unchanged_param_store(), random_state(args):
            runs = make(tuple(a[:size] for a in args))
            return runs, *runs.cost(reducer)
    except ValueError as error:
        n = len(args[0])
        if size == n or "Shape mismatch" not in str(error):
            raise
        raise ValueError(
            f"{subject}: expected a guide for any part of the data; got one for another number of data than the {size} "
            f"of a trial run ({str(error).splitlines()[0]}). Pass batch_size={n} where its parameters belong to the "
            "data."
        ) from error


def check_arguments(subject: str, program: Program, args: tuple[Tensor, ...], **numbers: int | None) -> None:
    """Raises for a number below 1, no data, and data that the program cannot have made."""
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"{subject}: expected {name} at least 1; got {value}. Give a positive number.")
    if not len(args[0]):
        raise ValueError(f"{subject}: expected at least one datum; got none. Pass data.")
    if any(len(a) != len(args[0]) for a in args):
        raise ValueError(
            f"{subject}: expected x and context of one length; got {[len(a) for a in args]}. Give a row for each datum."
        )
    check_data = getattr(program, "check_data", None)
    if check_data is not None and is_validation_enabled():
        check_data(*args)  # which says what to do, where Pyro's checks do not


class _Runs:
    """Runs of a program on parts of its data.

    Args:
        program: a model and a guide.
        trial: arguments for trial runs.
        plate: name of the data plate.
        latents: keep the draws.
        weigh: see :func:`reduce_runs`.
    """

    def __init__(self, program: Program, trial: tuple[Tensor, ...], plate: str, latents: bool, weigh: Weigh) -> None:
        self._program, self._trial, self._plate, self._latents, self._weigh = program, trial, plate, latents, weigh
        self._structure = inspect(program.model, program.guide, trial, {})
        self._names: list[str] = []
        self._fast: dict[tuple[int, int], Recorded] = {}

    def cost(self, reducer: Callable[[], Reducer[object]]) -> tuple[int, int]:
        """Bytes per datum and per draw that a run takes, with Pyro's validation.

        A run takes memory in proportion to its data and to data times particles. Two small runs tell them apart.
        """

        def cost(particles: int) -> int:
            return peak_memory(lambda: reducer().add(self._batch(self._draw(particles, *self._trial))))

        few, more, n = cost(2), cost(4), len(self._trial[0])
        per_draw = max(1, -(-(more - few) // (2 * n)))
        return max(0, -(-few // n) - 2 * per_draw), per_draw

    def check(self, subject: str, args: tuple[Tensor, ...], batch_size: int) -> None:
        """Runs all data once, with Pyro's validation, which later runs do without: it costs as much as a small network.

        Random generators are left as they were.
        """
        bad: list[int] = []
        with unchanged_param_store(), random_state(args):
            for number, batch in enumerate(zip(*(a.split(batch_size) for a in args), strict=True)):
                wrong = self._draw(1, *batch)[0].isnan().any(0)
                bad += (torch.nonzero(wrong).flatten() + number * batch_size).tolist()
        if bad:
            listed = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
            raise ValueError(
                f"{subject}: expected densities that are numbers; got NaN for {len(bad)} of {len(args[0])} data: "
                f"{listed}. Look for NaN among these data and in the parameters."
            )

    def record(self, particles: int, batches: Sequence[tuple[Tensor, ...]], memory: int) -> None:
        """Makes the runs of this many particles, on data of the shape of these, faster if that can be."""
        with unchanged_param_store(), pyro.validation_enabled(False), random_state(self._trial):
            fast = recorded(partial(self._draw, particles), batches)
            if fast is not None and peak_memory(lambda: fast.start(*batches[0])()) <= memory:
                self._fast[particles, len(batches[0][0])] = fast

    def of(self, args: tuple[Tensor, ...]) -> Callable[[int], Batch]:
        """Runs on these data: from a number of particles to their draws."""
        fast = {k: run.start(*args) for (k, n), run in self._fast.items() if n == len(args[0])}

        def run(particles: int) -> Batch:
            draw = fast.get(particles, partial(self._draw, particles, *args))
            with unchanged_param_store(), pyro.validation_enabled(False):
                return self._batch(draw())

        return run

    def _batch(self, drawn: list[Tensor]) -> Batch:
        log_weights, *values = drawn
        return Batch(log_weights, dict(zip(self._names, values, strict=True)))

    def _draw(self, particles: int, *args: Tensor) -> list[Tensor]:
        """Log-weights and, where they are kept, the draws in the order of ``_names``."""
        traces, log_weights = self._weigh(self._program, args, particles, self._structure, self._plate)
        sites = {name: site for name, _, site in traces.latents()} if self._latents else {}
        self._names = list(sites)
        draws = [by_draw(site, site["value"], traces, self._plate) for site in sites.values()]
        return [log_weights, *draws]
