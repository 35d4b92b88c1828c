"""Training the same weights under several estimators."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pyro
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_vae import checks
from pyro_vae.data import Dataset, as_dataset
from pyro_vae.data.alike import check_alike
from pyro_vae.evaluation import Estimate, elbo_terms, log_marginal_likelihood
from pyro_vae.evaluation.results import Result, rounded, table
from pyro_vae.lab.references import Estimators, named_estimators
from pyro_vae.lab.rows import RacePoint
from pyro_vae.models.program import Program
from pyro_vae.svi import SVI, OptimizerFactory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Race(Result):
    """What :func:`race` found.

    Attributes:
        curves: points for each estimator, from the common start on.
        steps: of each estimator, if these were equal.
        seconds: of each estimator, if these were equal.
        batch_size: data per step.
        num_particles: K of the importance-weighted NLL.
        seed: of data order and draws.
    """

    curves: dict[str, tuple[RacePoint, ...]]
    steps: int | None
    seconds: float | None
    batch_size: int
    num_particles: int
    seed: int

    def figure(self) -> Figure:
        """Curves of -ELBO and importance-weighted NLL."""
        from pyro_vae.lab.figures import race_figure

        return race_figure(self.curves, "step" if self.seconds is None else "seconds", self.num_particles)

    def estimates(self) -> dict[str, Estimate]:
        return {
            f"{what}, {name}": value
            for name, points in self.curves.items()
            for what, value in (("-ELBO", points[-1].negative_elbo), ("NLL", points[-1].nll))
        }

    def __str__(self) -> str:
        rows = []
        for name, points in self.curves.items():
            last = points[-1]
            cells = [cell for e in (last.negative_elbo, last.nll) for cell in rounded(e.value, e.standard_error)]
            rows.append([name, f"{last.step:,}", f"{last.seconds:.1f}", *cells])
        any_point = next(iter(self.curves.values()))[-1]
        return (
            f"{table(['estimator', 'steps', 'seconds', '-ELBO', '± s.e.', 'NLL', '± s.e.'], rows)}\n"
            f"in nats per datum, N = {any_point.nll.num_data:,} validation data, NLL with K = {self.num_particles:,}"
        )


@partial(checks.arguments, "race")
def race(
    program: Program,
    train: Dataset | Tensor,
    validation: Dataset | Tensor,
    estimators: Estimators,
    *,
    optimizer: OptimizerFactory,
    steps: int | None = None,
    seconds: float | None = None,
    batch_size: int = 100,
    num_points: int = 5,
    num_particles: int = 100,
    seed: int = 0,
    progress: bool = True,
) -> Race:
    """Trains copies of a program, each under an estimator, on the same batches for equal steps or equal time.

    Steps are eager, so that those of Pyro's estimators, which cannot be compiled, compare.

    Args:
        program: for example a :class:`~pyro_vae.VAE`, with the weights that all start from; left as it is.
        train: training data.
        validation: data for the curves, evaluated all at once.
        estimators: ours or any of ``pyro.infer``, by name; a sequence is named after its classes and settings.
        optimizer: parameters -> ``torch.optim.Optimizer``.
        steps: of each estimator.
        seconds: of each estimator, evaluation left out; either this or ``steps``.
        batch_size: data per step.
        num_points: points of a curve, beside the start.
        num_particles: K of the importance-weighted NLL, the same for all.
        seed: of the order of the data and of every draw; the global generators are left as they were.
        progress: show a bar.

    Raises:
        ValueError: both or neither of ``steps`` and ``seconds``, or a number below 1.
        FloatingPointError: as :meth:`pyro_vae.SVI.step` does.
    """
    if not isinstance(program, Program):
        raise TypeError(
            f"race: expected a program with model, guide and latents; got {type(program).__name__}. Use a VAE."
        )
    if (steps is None) == (seconds is None):
        raise ValueError(f"race: expected either steps or seconds; got {steps} and {seconds}. Give one of them.")
    length = steps if steps is not None else seconds
    assert length is not None
    if length <= 0 or num_points < 1 or (steps is not None and steps < num_points):
        raise ValueError(
            f"race: expected a positive length and from 1 to steps points; got length {length} and num_points "
            f"{num_points}. Give a longer race or fewer points."
        )
    train, validation = as_dataset(train), as_dataset(validation)
    check_alike("race", train, validation)
    device = train.device
    held_out = next(validation.batches(len(validation), generator=torch.Generator(device).manual_seed(seed)))
    named = named_estimators("race", estimators)
    curves = {}
    with tqdm(total=len(named) * num_points, disable=not progress, unit="point") as bar:
        for name, estimator in named.items():
            runner = copy.deepcopy(program)
            for part in (runner, runner.model, runner.guide):
                if isinstance(part, nn.Module):
                    part.train()
            svi = SVI(runner.model, runner.guide, optimizer, estimator, compile=False, isolated=True)
            batches = _endless(train, batch_size, torch.Generator(device).manual_seed(seed))
            ends = [length * i / num_points for i in range(1, num_points + 1)]
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(seed)
                svi.initialize(*held_out)
                point = partial(_point, runner, svi, held_out, num_particles=num_particles, seed=seed)
                curves[name] = (point(0.0), *_run(svi, batches, ends, seconds is not None, point, bar.update))
    return Race(curves, steps, seconds, batch_size, num_particles, seed)


def _run(
    svi: SVI,
    batches: Iterator[tuple[Tensor, ...]],
    ends: Sequence[float],
    timed: bool,
    point: Callable[[float], RacePoint],
    done: Callable[[], object],
) -> Iterator[RacePoint]:
    """Trains up to each of some numbers of steps, or of seconds, and evaluates there."""
    elapsed = 0.0
    for end in ends:
        while (elapsed if timed else svi.num_steps) < end:
            batch = next(batches)
            start = time.perf_counter()
            svi.step(*batch)
            elapsed += time.perf_counter() - start
        done()
        yield point(elapsed)


def _endless(train: Dataset, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
    while True:
        yield from train.batches(batch_size, shuffle=True, generator=generator)


def _point(
    program: Program, svi: SVI, data: tuple[Tensor, ...], seconds: float, *, num_particles: int, seed: int
) -> RacePoint:
    """Evaluates with the same random numbers every time, and leaves the generators as they were."""
    devices = [data[0].device] if data[0].is_cuda else []
    with torch.random.fork_rng(devices=devices), svi.scope(), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        elbo = Estimate.of(-elbo_terms(program, *data).elbo, 1)
        with warnings.catch_warnings():
            # Early guides are poor, and the same K for all is fair.
            warnings.filterwarnings("ignore", message="log_marginal_likelihood: expected Pareto k-hat")
            result = log_marginal_likelihood(program, *data, num_particles=num_particles, progress=False)
    return RacePoint(svi.num_steps, seconds, elbo, Estimate.of(-result.value, num_particles))
