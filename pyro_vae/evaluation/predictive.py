r"""Posterior predictive checks: whether data look like draws of the likelihood they are given.

For z from the posterior p(z|x) of a right model, a datum x and a replicate x' ~ p(x' | z) are exchangeable: both are
draws of p(x|z). The rank of an element of x among 99 replicates is uniform then, whatever the likelihood, and so is
the rank of log p(x|z). Heavier tails than the likelihood's put too many elements in the middle of their replicates,
and a scale that is too small puts too few there. The
kurtosis of standardized residuals sees tails where the latents take up much of the noise, so that ranks see little.

References:
    Gelman, Meng, Stern, "Posterior predictive assessment of model fitness via realized discrepancies", 1996,
    https://www.jstor.org/stable/24306036
    Czado, Gneiting, Held, "Predictive model assessment for count data", 2009,
    https://doi.org/10.1111/j.1541-0420.2009.01191.x
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae import checks
from pyro_vae.evaluation.importance import posterior_samples
from pyro_vae.evaluation.modes import in_evaluation_mode
from pyro_vae.evaluation.results import Estimate, Result, rounded, table
from pyro_vae.evaluation.runs import at_latents, one_run
from pyro_vae.models import Program
from pyro_vae.traces.layout import by_draw, to_site
from pyro_vae.traces.tracing import Site, Traces, per_datum

NUM_REPLICATES = 99
"""Replicates of each datum, so that it has 100 ranks."""


@dataclass(frozen=True)
class PredictiveStatistic:
    """A statistic of the data beside that of replicates.

    Attributes:
        data: of all elements of the data, in the unit of x or of the statistic.
        replicates: its mean over the replicated data sets.
        deviation: its standard deviation over them.
        p_value: Bayesian and two-sided, at least .02: how often a replicate is as extreme. It is conservative, since
            the latents have seen the data.
    """

    data: float
    replicates: float
    deviation: float
    p_value: float


@dataclass(frozen=True)
class PredictiveChecks(Result):
    """Ranks of data among their replicates.

    Attributes:
        inside_50: share of elements within the central half of their replicates; .50 for a right likelihood.
        inside_90: the same of nine tenths; .90.
        improbable: share of data whose log p(x|z) is among the lowest 5% of their replicates'; .05.
        tails: log of the kurtosis of standardized residuals x - E[x|z], less its mean over replicates; 0 for a right
            likelihood, with a standard error such that no replicate is beyond three. None for discrete data, whose
            rare values have residuals of any size, and for a likelihood without mean and variance.
        histogram: share of elements by rank, in 20 bins of .05 each.
        statistics: of data and replicates, by name.
    """

    inside_50: Estimate
    inside_90: Estimate
    improbable: Estimate
    tails: Estimate | None
    histogram: Tensor
    statistics: dict[str, PredictiveStatistic]

    def __str__(self) -> str:
        rows = [
            [name, f"{s.data:.4g}", *rounded(s.replicates, s.deviation), f"{s.p_value:.2f}"]
            for name, s in self.statistics.items()
        ]
        return f"{super().__str__()}\n" + table(["statistic", "data", "replicates", "± s.d.", "p-value"], rows)


@in_evaluation_mode
@torch.no_grad()
def predictive_checks(
    program: Program, x: Tensor, *context: Tensor, num_particles: int = 500, plate: str = "data"
) -> PredictiveChecks:
    """Compares data with draws of their likelihood, at latents drawn from the posterior.

    The latents are draws of the guide, resampled by their importance, so that a guide's faults are not taken for the
    likelihood's as far as the draws reach.

    Shapes: N data.

    Args:
        program: a :class:`~pyro_vae.VAE`, or anything with ``model`` and ``guide``.
        x: data (N, ...), the first argument of model and guide, N at least 2; NaN, where it is missing, is left out.
        context: their further arguments.
        num_particles: draws of the guide per datum that one is chosen from.
        plate: name of the plate over the data.

    Raises:
        ValueError: fewer than 2 data, a number below 1; latents of the model that the guide does not draw; no
            observed site without a mask.

    Example:
        >>> from types import SimpleNamespace
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 0.001))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(torch.zeros(len(x)), 0.001))
        >>> x = torch.tensor([-8.0, -0.1, 0.0, 0.1, 8.0])  # heavier tails than a Normal's
        >>> result = predictive_checks(SimpleNamespace(model=model, guide=guide), x)
        >>> round(result.inside_50.value, 2), round(result.improbable.value, 2)
        (0.6, 0.4)
    """
    checks.whole("predictive_checks", "num_particles", num_particles)
    if len(x) < 2:
        raise ValueError(f"predictive_checks: expected at least 2 data; got {len(x)}. Pass more.")
    run = one_run(program, (x, *context))
    if run.enumerated:
        raise ValueError(
            f"predictive_checks: expected latents that the guide draws; got {sorted(run.enumerated)}, which the model "
            "sums over. Draw them in the guide too."
        )
    draws = posterior_samples(program, x, *context, num_particles=num_particles, plate=plate, progress=False)
    latents = {name: to_site(site, draws[name], run, plate) for name, _, site in run.latents()}
    run = at_latents(run, latents)
    sites = {name: site for name, site in run.observed() if site["mask"] is None}
    if not sites:
        raise ValueError(
            f"predictive_checks: expected an observed site without a mask; got {[name for name, _ in run.observed()]}. "
            "Leave out what is masked."
        )
    replicates = _Replicates(run, sites, plate)
    for _ in range(NUM_REPLICATES):
        replicates.draw()
    return replicates.result(num_particles)


class _Ranks:
    """How many replicates lie below each value, and how many are equal to it.

    Args:
        values: of the data.
        tolerance: relative, within which two values are equal.
    """

    def __init__(self, values: Tensor, tolerance: float = 0.0) -> None:
        self.values, self._tolerance = values, tolerance
        self._below, self._equal = torch.zeros_like(values), torch.zeros_like(values)

    def add(self, replicate: Tensor) -> None:
        equal = (replicate - self.values).abs() <= self._tolerance * self.values.abs()
        self._below += (replicate < self.values) & ~equal
        self._equal += equal

    def ranks(self) -> Tensor:
        """0 to 99, ties by lot, with which those of discrete data are uniform too."""
        lot = torch.rand_like(self._equal, dtype=torch.float64)
        return self._below + (lot * (self._equal + 1)).floor()


class _Replicates:
    """Where the data lie among their replicates, which are drawn one after another."""

    def __init__(self, run: Traces, sites: dict[str, Site], plate: str) -> None:
        self._run, self._sites, self._plate = run, sites, plate
        values = {name: site["value"] for name, site in sites.items()}
        self._elements = _Ranks(self._flat(values))
        self._known = ~self._elements.values.isnan()
        # Sums of equal terms in another order differ by rounding.
        self._densities = _Ranks(self._log_density(values), tolerance=1e-6)
        self._standardize = _standardization(self._flat, sites, self._known)
        self._statistics: list[dict[str, float]] = []

    def draw(self) -> None:
        values = {}
        for name, site in self._sites.items():
            drawn, given = site["fn"].sample(), site["value"]
            values[name] = torch.where(given.isnan(), given, drawn) if given.is_floating_point() else drawn
        elements = self._flat(values)
        self._elements.add(elements)
        self._densities.add(self._log_density(values))
        self._statistics.append(self._statistics_of(elements))

    def result(self, num_particles: int) -> PredictiveChecks:
        ranks, lower, observed = self._elements.ranks(), self._densities.ranks(), self._known.any(1)

        def inside(percent: int) -> Estimate:
            outside = (NUM_REPLICATES + 1) * (100 - percent) // 200
            share = ((ranks >= outside) & (ranks <= NUM_REPLICATES - outside) & self._known).double().sum(1)
            return Estimate.of((share / self._known.sum(1))[observed], num_particles, "of elements")

        bins = torch.bincount((ranks[self._known] // 5).long(), minlength=20).double()
        data = self._statistics_of(self._elements.values)
        return PredictiveChecks(
            inside_50=inside(50),
            inside_90=inside(90),
            improbable=Estimate.of((lower < 5).double()[observed], num_particles, "of data"),
            tails=self._tails(data[_RESIDUALS], num_particles) if _RESIDUALS in data else None,
            histogram=bins / bins.sum(),
            statistics={name: self._statistic(name, value) for name, value in data.items()},
        )

    def _statistics_of(self, elements: Tensor) -> dict[str, float]:
        statistics = {name: f(elements[self._known]) for name, f in STATISTICS.items()}
        if self._standardize is not None:
            statistics[_RESIDUALS] = _moment(4)(self._standardize(elements)[self._known])
        return statistics

    def _statistic(self, name: str, data: float) -> PredictiveStatistic:
        values = torch.tensor([each[name] for each in self._statistics], dtype=torch.float64)
        tail = min(int((values >= data).sum()), int((values <= data).sum()))
        return PredictiveStatistic(
            data, values.mean().item(), values.std().item(), min(1.0, 2 * (tail + 1) / (len(values) + 1))
        )

    def _tails(self, data: float, num_particles: int) -> Estimate | None:
        """Log ratio of the residuals' kurtosis to that of replicates; it is at least 1, of what varies at all."""
        if data < 1:
            return None
        replicates = torch.tensor([each[_RESIDUALS] for each in self._statistics], dtype=torch.float64).log()
        value = math.log(data) - replicates.mean().item()
        # Where residuals are far from Normal, so is their kurtosis, and its standard deviation alone says too little.
        farthest = (replicates - replicates.mean()).abs().max()
        error = max(replicates.std().item(), farthest.item() / 3)
        return Estimate(value, error, "log ratio", len(self._known), num_particles)

    def _flat(self, values: dict[str, Tensor]) -> Tensor:
        """All elements of all sites of each datum, a row each; in double precision, as whole numbers have no NaN."""
        rows = [by_draw(site, values[name], self._run, self._plate)[0] for name, site in self._sites.items()]
        return torch.cat([row.reshape(len(row), -1).double() for row in rows], 1)

    def _log_density(self, values: dict[str, Tensor]) -> Tensor:
        """Log p(x|z) of each datum, (N,)."""
        return torch.stack(
            [
                per_datum(name, site, site["fn"].log_prob(values[name]), self._run, self._plate)[0]
                for name, site in self._sites.items()
            ]
        ).sum(0)


def _standardization(
    elements: Callable[[dict[str, Tensor]], Tensor], sites: dict[str, Site], known: Tensor
) -> Callable[[Tensor], Tensor] | None:
    """Standardizes all elements by the mean and the variance of their likelihood, where these are to be had."""
    if any(site["fn"].support.is_discrete for site in sites.values()):
        return None
    try:
        means = elements({name: site["fn"].mean.expand(site["value"].shape) for name, site in sites.items()})
        variances = elements({name: site["fn"].variance.expand(site["value"].shape) for name, site in sites.items()})
    except NotImplementedError:
        return None
    right = means.isfinite() & variances.isfinite() & (variances > 0)
    return (lambda x: (x - means) / variances.sqrt()) if bool(right[known].all()) else None


def _moment(order: int) -> Callable[[Tensor], float]:
    def of(x: Tensor) -> float:
        centered = x - x.mean()
        scale = centered.square().mean().sqrt()
        return float((centered**order).mean() / scale**order) if scale > 0 else 0.0

    return of


STATISTICS: dict[str, Callable[[Tensor], Any]] = {
    "mean": lambda x: x.mean().item(),
    "standard deviation": lambda x: x.std().item(),
    "skewness": _moment(3),
    "kurtosis": _moment(4),
    "smallest": lambda x: x.min().item(),
    "largest": lambda x: x.max().item(),
    "share of zeros": lambda x: (x == 0).double().mean().item(),
}
"""What is compared of data and replicates, of all elements together."""

_RESIDUALS = "kurtosis of residuals"
