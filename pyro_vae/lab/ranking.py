"""Which of several trained programs is better, by how much, or that it cannot be told."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae import checks
from pyro_vae.data import Dataset, as_dataset
from pyro_vae.evaluation import Estimate, LogMarginalLikelihood, log_marginal_likelihood
from pyro_vae.evaluation.modes import in_evaluation_mode
from pyro_vae.evaluation.pareto import RELIABLE
from pyro_vae.evaluation.results import Result, rounded, table
from pyro_vae.evaluation.runs import Batch, one_run, reduce_runs
from pyro_vae.lab.measures import check_contexts, log_jacobians, observed
from pyro_vae.lab.verdicts import ERROR_RATE, POWER, Scores, Verdict, standard_error, together, verdicts
from pyro_vae.models import Program
from pyro_vae.tables import check_table
from pyro_vae.traces.possible import check_possible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Quantity = Literal["log_marginal_likelihood", "iwelbo", "elbo"]
_CALLED = {"log_marginal_likelihood": "log p(x)", "iwelbo": "importance-weighted bound", "elbo": "ELBO"}


@dataclass(frozen=True, repr=False)
class Ranking(Result):
    """What :func:`rank` found, or :func:`~pyro_vae.lab.race` at its end.

    Attributes:
        of: what is compared, ``"log_marginal_likelihood"``, ``"iwelbo"`` or ``"elbo"``.
        measure: what the figures are densities or probabilities of.
        figures: averages over seeds and data by entry, best first; their standard errors are for both as draws from
            their populations.
        by_seed: averages over data, for each seed, by entry.
        unreliable: share of estimates whose k-hat is above 0.7, by entry; NaN where there is no k-hat.
        verdicts: on each pair.
        error_rate: the largest probability that any interval misses its difference.
        num_seeds: S.
    """

    of: Quantity
    measure: str
    figures: dict[str, Estimate]
    by_seed: dict[str, tuple[float, ...]]
    unreliable: dict[str, float]
    verdicts: tuple[Verdict, ...]
    error_rate: float
    num_seeds: int

    def verdict(self, first: str, second: str) -> Verdict:
        """On two entries, in any order.

        Raises:
            KeyError: there is none.
        """
        return {frozenset((v.first, v.second)): v for v in self.verdicts}[frozenset((first, second))]

    def places(self, name: str) -> tuple[int, int]:
        """The best and the worst place that an entry may have, as far as it can be told."""
        above = sum(v.better and v.second == name for v in self.verdicts)
        below = sum(v.better and v.first == name for v in self.verdicts)
        return 1 + above, len(self.figures) - below

    def figure(self) -> Figure:
        """The entries' figures, seed by seed, and the intervals of all differences."""
        from pyro_vae.lab.figures import ranking_figure

        return ranking_figure(self.by_seed, self.verdicts, _CALLED[self.of])

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        rows = []
        for name, e in self.figures.items():
            best, worst = self.places(name)
            unreliable = f"{self.unreliable[name]:.1%}" if self.unreliable[name] == self.unreliable[name] else "?"
            place = f"{best}" if best == worst else f"{best} to {worst}"
            rows.append([name, place, *rounded(e.value, e.standard_error), *([unreliable] if self._sampled else [])])
        header = ["", "place", _CALLED[self.of], "± s.e.", *(["k-hat > 0.7"] if self._sampled else [])]
        return "\n".join([table(header, rows), *map(str, self.verdicts), *self._notes()])

    @property
    def _sampled(self) -> bool:
        return self.of == "log_marginal_likelihood"

    def _notes(self) -> list[str]:
        e = next(iter(self.figures.values()))
        how = (
            f", by importance sampling with K = {e.num_particles:,}" if self._sampled else f", K = {e.num_particles:,}"
        )
        notes = [f"in nats per datum, of {self.measure}, N = {e.num_data:,} test data{how}"]
        if self.verdicts:
            count = len(self.verdicts)
            shared = f", for all {count} pairs at once (Bonferroni)" if count > 1 else ""
            notes.append(f"± covers the difference with probability {1 - self.error_rate:g}{shared}")
        if self.num_seeds > 1:
            notes.append(
                f"The claim is about training anew and about new data: {self.num_seeds} seeds; paired by seed and datum"
            )
        else:
            notes.append("One seed: the claim is about these trained programs on new data, not about training anew")
        if any(v.more_seeds is not None or v.more_data is not None for v in self.verdicts):
            notes.append(f"More seeds or data are for a difference of the size seen, told with probability {POWER:g}")
        return notes


@partial(checks.arguments, "rank")
def rank(
    programs: Mapping[str, Program | Sequence[Program]],
    data: Dataset | Tensor | Mapping[str, Dataset | Tensor],
    *,
    of: Quantity = "log_marginal_likelihood",
    num_particles: int = 1000,
    batch_size: int | None = None,
    plate: str = "data",
    error_rate: float = ERROR_RATE,
    seed: int = 0,
    progress: bool = True,
) -> Ranking:
    r"""Compares trained programs on the same test data: which is better, by how much, or that it cannot be told.

    Differences are taken datum by datum and seed by seed. With several programs of an entry, of one seed each, the
    unit of replication is the seed, and a verdict is about training anew; with one, about these programs. Intervals
    hold for all pairs at once; see :mod:`pyro_vae.lab.verdicts` for the formulas.

    Figures are of one measure, or there is an error: Normal and Bernoulli do not compare. Programs that were trained on
    the same data in other units, such as standardized ones, are given these, or observe them; the log-Jacobian is
    counted, and figures are those of the first entry's units.

    Estimates of log p(x) by importance sampling are low where a guide is poor. No entry is told to be worse on the
    strength of that: its figures are given their bias by the delta method, and the lead of the other at data with a
    k-hat above 0.7; where these are over a tenth, nothing is told. The bounds are what they are, whatever the guide:
    they rank programs together with their guides.

    Args:
        programs: trained ones by name, or one for each seed, as many of all.
        data: test data, which none of them has seen; or for each program those in its own units, row by row the same.
        of: ``"log_marginal_likelihood"``, by importance sampling; ``"iwelbo"``, the same figure as the bound of K
            draws that it is; or ``"elbo"``, averaged over K draws.
        num_particles: K, draws per datum.
        batch_size: data to run at once; None chooses it.
        plate: name of the plate over the data.
        error_rate: the largest probability that any verdict is wrong.
        seed: of the draws, the same for all, and of the bits of a dynamic set; generators are left as they were.
        progress: show a bar.

    Raises:
        TypeError: no programs by name.
        ValueError: figures of different measures or of different data; fewer than two entries or two data; another
            number of programs, or one twice; log-likelihoods that are not finite.

    Example:
        >>> from types import SimpleNamespace
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def program(loc):
        ...     def model(x):
        ...         with pyro.plate("data", len(x)):
        ...             z = pyro.sample("z", dist.Normal(torch.full((len(x), 1), loc), 1.0).to_event(1))
        ...             pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        ...
        ...     def guide(x):  # the posterior, at which every draw tells log p(x)
        ...         with pyro.plate("data", len(x)):
        ...             pyro.sample("z", dist.Normal((x + loc) / 2, 0.5**0.5).to_event(1))
        ...
        ...     return SimpleNamespace(model=model, guide=guide)
        >>> x = torch.linspace(-2, 2, 100)[:, None]
        >>> programs = {"at 0": program(0.0), "also at 0": program(0.0), "at 2": program(2.0)}
        >>> found = rank(programs, x, num_particles=30, progress=False)
        >>> for verdict in found.verdicts:
        ...     print(verdict)
        at 0 and also at 0: cannot tell, 0 ± 0; they are equal on every datum
        at 0 is better than at 2 by 1 ± 0.29
        also at 0 is better than at 2 by 1 ± 0.29
        >>> [found.places(name) for name in programs]
        [(1, 2), (1, 2), (3, 3)]
    """
    checks.choice("rank", "of", of, list(_CALLED))
    checks.number("rank", "error_rate", error_rate, above=0, below=1)
    num_particles = checks.whole("rank", "num_particles", num_particles)
    checks.whole("rank", "seed", seed, 0)
    if batch_size is not None:
        checks.whole("rank", "batch_size", batch_size)
    entries = _entries(programs)
    rows = _rows(entries, data, seed)
    check_contexts("rank", {name: each[1:] for name, each in rows.items()})
    seen = {
        f"{name}, seed {s}" if s else name: observed(program, *rows[name], plate=plate, batch_size=batch_size)
        for name, members in entries.items()
        for s, program in enumerate(members)
    }
    jacobians = iter(log_jacobians("rank", seen).values())
    scores = {}
    with tqdm(total=len(seen), disable=not progress, unit="program") as bar:
        for name, members in entries.items():
            found = []
            for program in members:
                x = rows[name]
                with torch.random.fork_rng(devices=[x[0].device] if x[0].is_cuda else []):
                    torch.manual_seed(seed)
                    score = _score(program, *x, of=of, num_particles=num_particles, batch_size=batch_size, plate=plate)
                found.append(replace(score, value=score.value + next(jacobians).to(score.value)))
                bar.update()
            scores[name] = together(found)
            _check_differ(name, scores[name])
    return ranking("rank", scores, of, str(next(iter(seen.values()))[0]), num_particles, error_rate)


def ranking(
    subject: str, scores: Mapping[str, Scores], of: Quantity, measure: str, num_particles: int, error_rate: float
) -> Ranking:
    """What scores tell, once they are finite.

    Raises:
        ValueError: some are not.
    """
    for name, score in scores.items():
        if lost := int((~score.value.isfinite()).sum()):
            raise ValueError(
                f"{subject}: expected finite figures; got {lost} that are not, of {name!r}. Leave it out, or the data "
                "that it takes for impossible: evaluation.log_marginal_likelihood tells which."
            )
    order = sorted(scores, key=lambda name: -scores[name].value.double().mean().item())
    values = {name: scores[name].value for name in order}
    num_seeds, num_data = values[order[0]].shape
    return Ranking(
        of,
        measure,
        {
            name: Estimate(v.double().mean().item(), standard_error(v), "nats", num_data, num_particles)
            for name, v in values.items()
        },
        {name: tuple(v.double().mean(1).tolist()) for name, v in values.items()},
        {name: scores[name].unreliable.double().mean().item() for name in order},
        verdicts(scores, error_rate),
        error_rate,
        num_seeds,
    )


def scores_of(result: LogMarginalLikelihood, of: Quantity) -> Scores:
    """Of one program, as an estimate of log p(x) or as a bound."""
    value, zero = result.value[None], torch.zeros_like(result.value[None])
    if of == "iwelbo":
        return Scores(value, zero, zero)
    # A logarithm of an average is low by half its variance, by the delta method.
    bias = result.standard_error.square().nan_to_num(0) / 2
    bad = torch.where(result.pareto_k.isnan(), result.pareto_k, (result.pareto_k > RELIABLE).to(value))
    return Scores(value, bias[None], bad[None])


def _score(program: Program, *x: Tensor, of: Quantity, num_particles: int, **options: Any) -> Scores:
    if of == "elbo":
        value = _elbo(program, *x, num_particles=num_particles, **options)[None]
        return Scores(value, torch.zeros_like(value), torch.zeros_like(value))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="log_marginal_likelihood: expected Pareto k-hat")  # the table tells
        options |= {"num_particles": num_particles, "progress": False}
        return scores_of(log_marginal_likelihood(program, *x, **options), of)


@in_evaluation_mode
def _elbo(
    program: Program, x: Tensor, *context: Tensor, num_particles: int, batch_size: int | None, plate: str
) -> Tensor:
    options: dict[str, Any] = {"memory": None, "batch_size": batch_size, "plate": plate, "progress": False}
    args = (x, *context)
    value = torch.cat(reduce_runs("rank", program, args, _Mean, num_particles=num_particles, **options))
    check_possible("rank", value, partial(one_run, program, args), plate)
    return value


class _Mean:
    """The average of log-weights that come in parts."""

    def __init__(self) -> None:
        self._sum: Tensor | float = 0.0
        self._count = 0

    def add(self, batch: Batch) -> None:
        self._sum = self._sum + batch.log_weights.sum(0)
        self._count += len(batch.log_weights)

    def finish(self) -> Tensor:
        assert isinstance(self._sum, Tensor)
        return self._sum / self._count


def _entries(programs: Any) -> dict[str, list[Program]]:
    """Programs by name, one for each seed."""
    if not isinstance(programs, Mapping) or not all(isinstance(name, str) for name in programs):
        raise TypeError(
            f"rank: expected programs by name; got {type(programs).__name__}. Pass {{'name': program, ...}}."
        )
    given = {name: list(p) if isinstance(p, (list, tuple)) else [p] for name, p in programs.items()}
    for name, members in given.items():
        for member in members:
            if not isinstance(member, Program):
                raise TypeError(
                    f"rank: expected trained programs with model and guide; got {type(member).__name__} as {name!r}. "
                    "Pass a VAE, or a list of them, of one seed each."
                )
    counts = {name: len(members) for name, members in given.items()}
    if len(given) < 2 or len(set(counts.values())) > 1 or 0 in counts.values():
        raise ValueError(
            f"rank: expected two entries or more, with as many programs each; got {counts}. Give each one program, or "
            "one for every seed."
        )
    return given


def _rows(entries: Mapping[str, list[Program]], data: Any, seed: int) -> dict[str, tuple[Tensor, ...]]:
    """Data and contexts of each entry."""
    if isinstance(data, Mapping) and data.keys() != entries.keys():
        raise ValueError(f"rank: expected data of {list(entries)}; got {list(data)}. Give those of each entry by name.")
    given = data if isinstance(data, Mapping) else dict.fromkeys(entries, data)
    sets = {name: as_dataset(each) for name, each in given.items()}
    for name, programs in entries.items():
        for program in programs:
            check_table("rank", program, sets[name])
    lengths = {name: len(each) for name, each in sets.items()}
    if min(lengths.values()) < 2 or len(set(lengths.values())) > 1:
        raise ValueError(
            f"rank: expected the same test data of all, two at least; got {lengths} data. Give each the same rows."
        )
    return {
        name: next(each.batches(len(each), generator=torch.Generator(each.device).manual_seed(seed)))
        for name, each in sets.items()
    }


def _check_differ(name: str, score: Scores) -> None:
    """Raises for an entry that has a program twice: a copy is no further seed."""
    if any(torch.equal(a, b) for i, a in enumerate(score.value) for b in score.value[:i]):
        raise ValueError(
            f"rank: expected programs of different seeds; got two that are equal on every datum as {name!r}. Train "
            "anew with another seed."
        )
