"""Training programs under estimators, side by side."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import pyro
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_vae import checks
from pyro_vae.data import Dataset, as_dataset
from pyro_vae.data.alike import check_alike
from pyro_vae.evaluation import Estimate, elbo_terms, log_marginal_likelihood
from pyro_vae.evaluation.results import Result, rounded, table
from pyro_vae.lab.measures import log_jacobians, observed
from pyro_vae.lab.ranking import Ranking, ranking, scores_of
from pyro_vae.lab.references import Estimators, copied, named_estimators
from pyro_vae.lab.rows import RacePoint
from pyro_vae.lab.verdicts import ERROR_RATE, Scores, together
from pyro_vae.models.program import Program
from pyro_vae.svi import SVI, OptimizerFactory
from pyro_vae.tables import check_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Maker = Program | Callable[[], Program]
"""A program with the weights to start from, or what makes it, with weights of its own for each seed."""


@dataclass(frozen=True, repr=False)
class Race(Result):
    """What :func:`race` found.

    Attributes:
        curves: points for each entry, from its start on; for each of several seeds, ``"entry, seed 1"``.
        ranking: verdicts on the last NLL, as the bound that it is, of each pair of entries.
        steps: of each entry, if these were equal.
        seconds: of each entry, if these were equal.
        batch_size: data per step.
        num_particles: K of the importance-weighted NLL.
        seed: of weights that are made, data order and draws, the first of several.
    """

    curves: dict[str, tuple[RacePoint, ...]]
    ranking: Ranking
    steps: int | None
    seconds: float | None
    batch_size: int
    num_particles: int
    seed: int

    def figure(self) -> Figure:
        """Curves of -ELBO and importance-weighted NLL."""
        from pyro_vae.lab.figures import race_figure

        by: Literal["step", "seconds"] = "step" if self.seconds is None else "seconds"
        return race_figure(self.curves, by, self.num_particles, self.ranking.num_seeds)

    def estimates(self) -> dict[str, Estimate]:
        return {
            f"{what}, {name}": value
            for name, points in self.curves.items()
            for what, value in (("-ELBO", points[-1].negative_elbo), ("NLL", points[-1].nll))
        }

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        rows = []
        for name, points in self.curves.items():
            last = points[-1]
            cells = [cell for e in (last.negative_elbo, last.nll) for cell in rounded(e.value, e.standard_error)]
            rows.append([name, f"{last.step:,}", f"{last.seconds:.1f}", *cells])
        any_point = next(iter(self.curves.values()))[-1]
        curves = (
            f"{table(['entry', 'steps', 'seconds', '-ELBO', '± s.e.', 'NLL', '± s.e.'], rows)}\n"
            f"in nats per datum, N = {any_point.nll.num_data:,} validation data, NLL with K = {self.num_particles:,}"
        )
        return f"{curves}\n\n{self.ranking}" if self.ranking.verdicts else curves


@partial(checks.arguments, "race")
def race(
    program: Maker | Mapping[str, Maker],
    train: Dataset | Tensor,
    validation: Dataset | Tensor,
    estimators: Estimators | pyro.infer.ELBO,
    *,
    optimizer: OptimizerFactory,
    steps: int | None = None,
    seconds: float | None = None,
    batch_size: int = 100,
    num_points: int = 5,
    num_particles: int = 100,
    seed: int = 0,
    num_seeds: int = 1,
    progress: bool = True,
) -> Race:
    """Trains programs under estimators, on the same batches for equal steps or equal time, and says which is better.

    One program may run under several estimators, several programs under one, or each under its own, by the same names.
    All have the same seeds; entries that start from the same weights start equal. With several seeds the verdicts are
    about training anew, with one they are about these runs; see :func:`rank`. Programs whose log p(x) do not compare,
    such as those of a Bernoulli and of a Normal, are refused before the first step.

    Steps are eager, so that those of Pyro's estimators, which cannot be compiled, compare.

    Args:
        program: for example a :class:`~pyro_vae.VAE`, with the weights that all start from; left as it is. Or a
            function that makes one, once for each entry and seed. Or these by the names of the entries.
        train: training data.
        validation: data for the curves and verdicts, evaluated all at once.
        estimators: ours or any of ``pyro.infer``, by name; a sequence is named after its classes and settings. A
            single one for all programs.
        optimizer: parameters -> ``torch.optim.Optimizer``.
        steps: of each entry and seed.
        seconds: of each entry and seed, evaluation left out; either this or ``steps``.
        batch_size: data per step.
        num_points: points of a curve, beside the start.
        num_particles: K of the importance-weighted NLL, the same for all.
        seed: of weights that are made, of the order of the data and of every draw; the global generators are left as
            they were.
        num_seeds: S runs of each entry, of ``seed``, ``seed + 1``, ...; programs are then to be given as functions.
        progress: show a bar.

    Raises:
        TypeError: something else in place of a program.
        ValueError: both or neither of ``steps`` and ``seconds``, or a number below 1; programs and estimators of other
            names; several seeds of a program with given weights; programs of different measures, see :func:`rank`.
        FloatingPointError: as :meth:`pyro_vae.SVI.step` does.

    Example:
        >>> from pyro_vae import VAE, conditionals, elbo, likelihoods, nets, priors
        >>> def program():
        ...     likelihood = likelihoods.Normal(nets.MLP(1, [8]), 2, scale=1.0)
        ...     return VAE(priors.StandardNormal(1), likelihood, conditionals.DiagonalNormal(nets.MLP(2, [8]), 1))
        >>> x = torch.tensor([[4.0, 4.0], [-4.0, -4.0]]).repeat(20, 1)
        >>> losses = {"beta 1": elbo.ELBO(), "beta 100": elbo.ELBO(beta=100.0)}  # which has no use for its latent
        >>> how = {"optimizer": partial(torch.optim.Adam, lr=0.1), "steps": 25, "num_points": 1, "num_particles": 20}
        >>> found = race(program, x, x, losses, **how, progress=False)
        >>> print(str(found.ranking.verdicts[0]).split(" by ")[0])
        beta 1 is better than beta 100
    """
    if (steps is None) == (seconds is None):
        raise ValueError(f"race: expected either steps or seconds; got {steps} and {seconds}. Give one of them.")
    length = steps if steps is not None else seconds
    assert length is not None
    if length <= 0 or num_points < 1 or (steps is not None and steps < num_points):
        raise ValueError(
            f"race: expected a positive length and from 1 to steps points; got length {length} and num_points "
            f"{num_points}. Give a longer race or fewer points."
        )
    seeds = range(seed, seed + checks.whole("race", "num_seeds", num_seeds))
    train, validation = as_dataset(train), as_dataset(validation)
    check_alike("race", train, validation)
    entries = _entries(program, estimators, num_seeds)
    generator = torch.Generator(train.device).manual_seed(seed)
    held_out = next(validation.batches(len(validation), generator=generator))
    ends = [length * i / num_points for i in range(1, num_points + 1)]
    course = _Course(train, held_out, optimizer, ends, seconds is not None, batch_size, num_particles, seed)
    seen = {name: course.observed(make) for name, (make, _) in entries.items()}
    shifts = log_jacobians("race", seen)
    curves: dict[str, tuple[RacePoint, ...]] = {}
    scores = {}
    with tqdm(total=len(entries) * num_seeds * num_points, disable=not progress, unit="point") as bar:
        for name, (make, estimator) in entries.items():
            runs = [course.run(make, copied(estimator), shifts[name], each, bar.update) for each in seeds]
            scores[name] = together([score for _, score in runs])
            labels = [name] if num_seeds == 1 else [f"{name}, seed {each}" for each in seeds]
            curves |= dict(zip(labels, (points for points, _ in runs), strict=True))
    measure = str(next(iter(seen.values()))[0])
    ranked = ranking("race", scores, "iwelbo", measure, num_particles, ERROR_RATE)
    return Race(curves, ranked, steps, seconds, batch_size, num_particles, seed)


def _entries(program: Any, estimators: Any, num_seeds: int) -> dict[str, tuple[Callable[[], Program], pyro.infer.ELBO]]:
    """What makes a program, and its estimator, by name."""
    single = isinstance(estimators, pyro.infer.ELBO)
    if isinstance(program, Mapping):
        named = named_estimators("race", dict.fromkeys(program, estimators) if single else estimators)
        if named.keys() != program.keys():
            raise ValueError(
                f"race: expected a program for each of {list(named)}; got {list(program)}. Give programs and "
                "estimators by the same names, or a single one for all."
            )
    else:
        named = named_estimators("race", [estimators] if single else estimators)
        program = dict.fromkeys(named, program)
    return {name: (_maker(program[name], num_seeds), estimator) for name, estimator in named.items()}


def _maker(program: Any, num_seeds: int) -> Callable[[], Program]:
    if isinstance(program, Program):
        if num_seeds > 1:
            raise ValueError(
                f"race: expected a function that makes the program, for each seed to have weights of its own; got "
                f"{type(program).__name__} with given ones. Use lambda: VAE(...)."
            )
        return partial(copy.deepcopy, program)
    _check_program(program, callable(program))

    def make() -> Program:
        made = program()
        _check_program(made, isinstance(made, Program))
        return copy.deepcopy(made)  # a function may return the same one again

    return make


def _check_program(program: Any, right: bool) -> None:
    if not right:
        raise TypeError(
            f"race: expected a program with model, guide and latents; got {type(program).__name__}. Use a VAE, or a "
            "function that makes one."
        )


@dataclass(frozen=True)
class _Course:
    """What all runs have in common.

    Attributes:
        train: training data.
        held_out: validation data.
        optimizer: parameters -> ``torch.optim.Optimizer``.
        ends: steps or seconds of the points.
        timed: whether these are seconds.
        batch_size: data per step.
        num_particles: K of the NLL.
        seed: of evaluation.
    """

    train: Dataset
    held_out: tuple[Tensor, ...]
    optimizer: OptimizerFactory
    ends: list[float]
    timed: bool
    batch_size: int
    num_particles: int
    seed: int

    def observed(self, make: Callable[[], Program]) -> Any:
        """What a program observes of the validation data."""
        with self._forked(self.seed):
            program = make()
            check_table("race", program, self.train)
            return observed(program, *self.held_out, plate="data", batch_size=len(self.held_out[0]))

    def run(
        self,
        make: Callable[[], Program],
        estimator: pyro.infer.ELBO,
        shift: Tensor,
        seed: int,
        done: Callable[[], object],
    ) -> tuple[tuple[RacePoint, ...], Scores]:
        """Trains one program; its curve, and the scores of its end.

        Args:
            make: makes it.
            estimator: to train with.
            shift: added to log p(x), (N,).
            seed: of weights, order and draws.
            done: called at each point.
        """
        with self._forked(seed):
            program = make()
            for part in (program, program.model, program.guide):
                if isinstance(part, nn.Module):
                    part.train()
            svi = SVI(program.model, program.guide, self.optimizer, estimator, compile=False, isolated=True)
            torch.manual_seed(seed)
            svi.initialize(*self.held_out)
            batches = self._batches(torch.Generator(self.train.device).manual_seed(seed))
            point, score = self._point(program, svi, shift, 0.0)
            points, elapsed = [point], 0.0
            for end in self.ends:
                while (elapsed if self.timed else svi.num_steps) < end:
                    batch = next(batches)
                    start = time.perf_counter()
                    svi.step(*batch)
                    elapsed += time.perf_counter() - start
                point, score = self._point(program, svi, shift, elapsed)
                points.append(point)
                done()
        return tuple(points), score

    def _batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
        while True:
            yield from self.train.batches(self.batch_size, shuffle=True, generator=generator)

    def _point(self, program: Program, svi: SVI, shift: Tensor, seconds: float) -> tuple[RacePoint, Scores]:
        """Evaluates with the same random numbers every time, and leaves the generators as they were."""
        with self._forked(self.seed), svi.scope(), pyro.validation_enabled(False):
            bound = elbo_terms(program, *self.held_out).elbo
            with warnings.catch_warnings():
                # Early guides are poor, and the same K for all is fair.
                warnings.filterwarnings("ignore", message="log_marginal_likelihood: expected Pareto k-hat")
                k = self.num_particles
                result = log_marginal_likelihood(program, *self.held_out, num_particles=k, progress=False)
        shift = shift.to(bound)
        score = scores_of(replace(result, value=result.value + shift), "iwelbo")
        nll = Estimate.of(-score.value[0], self.num_particles)
        return RacePoint(svi.num_steps, seconds, Estimate.of(-bound - shift, 1), nll), score

    @contextmanager
    def _forked(self, seed: int) -> Iterator[None]:
        device = self.held_out[0].device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield
