"""The figures of a trained program put together, each against a cut-off, with what is wrong in plain words."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyro_vae import checks
from pyro_vae.evaluation.amortization import amortization_gap
from pyro_vae.evaluation.distortion import rate_distortion
from pyro_vae.evaluation.findings import CHECKS, Finding
from pyro_vae.evaluation.importance import LogMarginalLikelihood, log_marginal_likelihood
from pyro_vae.evaluation.modes import in_evaluation_mode, is_set, rows_of
from pyro_vae.evaluation.predictive import PredictiveChecks, predictive_checks
from pyro_vae.evaluation.ranks import Calibration, calibration
from pyro_vae.evaluation.results import Estimate, Result, plain
from pyro_vae.evaluation.simulation import Simulation, simulate
from pyro_vae.evaluation.surgery import elbo_surgery
from pyro_vae.evaluation.two_sided import importance_bounds
from pyro_vae.evaluation.units import ActiveUnits, active_units
from pyro_vae.graphs.recording import random_state
from pyro_vae.models import Program

MIN_DATA = 30
"""Fewer data do not tell their standard error."""

_SIMULATED = 500
_OPTIMIZED = 100  # data whose distributions are optimized, for the amortization gap
_DRAWS = 20

T = TypeVar("T")


@dataclass(frozen=True)
class Report(Result):
    """Verdicts on a program; see :func:`report`.

    Attributes:
        findings: every check that could be made, the most telling first.
        figures: by name; "nll" is an upper bound of -log p(x) on average.
        by_label: -log p(x) of the data of each label.
        not_measured: why other checks could not be made, by the name of a figure.
        log_marginal_likelihood: of each datum.
        units: the latents' activity; None where not measured.
        calibration: ranks of simulated latents; None where not measured.
        predictive: posterior predictive checks; None where not measured.
        num_data: N, data that were looked at.
        num_particles: K.
    """

    findings: tuple[Finding, ...]
    figures: dict[str, Estimate]
    by_label: dict[str, Estimate]
    not_measured: dict[str, str]
    log_marginal_likelihood: LogMarginalLikelihood
    units: ActiveUnits | None
    calibration: Calibration | None
    predictive: PredictiveChecks | None
    num_data: int
    num_particles: int

    @property
    def found(self) -> tuple[Finding, ...]:
        """What the program has, faults before notes."""
        return tuple(f for kind in ("fault", "note") for f in self.findings if f.found and f.check.severity == kind)

    def telling(self, most: int = 3) -> list[str]:
        """The most telling lines: what was found, and then how probable the data are and what the latents tell."""
        lines = [f"{f.check.severity.upper()} {f.name}: {f.line}. {f.check.remedy}" for f in self.found]
        if not lines:
            lines = [f"no fault or note in {len(self.findings)} checks"]
        lines += [f"{name.replace('_', ' ')} {value}" for name, value in self.figures.items()]
        return lines[: checks.whole("Report.telling", "most", most)]

    def estimates(self) -> dict[str, Estimate]:
        return {**self.figures, **{f"nll of label {name}": value for name, value in self.by_label.items()}}

    def to_json(self) -> str:
        """Findings, figures and statistics; single data only as far as they are named in a finding."""
        findings = [{"name": f.name, "found": f.found, "detail": f.detail, **vars(f.check)} for f in self.findings]
        for entry, finding in zip(findings, self.findings, strict=True):
            entry["estimate"] = finding.estimate
        statistics = {} if self.predictive is None else self.predictive.statistics
        return json.dumps(
            plain(
                {
                    "findings": findings,
                    "figures": self.figures,
                    "by_label": self.by_label,
                    "statistics": statistics,
                    "not_measured": self.not_measured,
                    "num_data": self.num_data,
                    "num_particles": self.num_particles,
                }
            )
        )

    def __str__(self) -> str:
        counts = [sum(f.check.severity == kind for f in self.found) for kind in ("fault", "note")]
        words = [f"{n} {kind}{'s' * (n != 1)}" for n, kind in zip(counts, ("fault", "note"), strict=True)]
        head = (
            f"{' and '.join(words)} in {len(self.findings)} checks of {self.num_data:,} data, "
            f"{self.num_particles:,} draws each"
        )
        rest = [f for f in self.findings if not f.found]
        missing = [f"not measured: {name}: {why}" for name, why in self.not_measured.items()]
        predictive = [] if self.predictive is None else [str(self.predictive)]
        foot = "unsure: beyond the cut-off, by less than 3 standard errors. Measured rates of error: to_json()."
        parts = [head, *map(str, self.found), *map(str, rest), *missing, foot, "", super().__str__(), *predictive]
        return "\n".join(parts)


@in_evaluation_mode
@torch.no_grad()
def report(
    program: Program,
    x: Tensor,
    *context: Tensor,
    train: Any = None,
    labels: Tensor | None = None,
    num_particles: int = 500,
    max_data: int = 1000,
    plate: str = "data",
    seed: int = 0,
) -> Report:
    """Looks for what is wrong with a trained program, and says it with figures, cut-offs and remedies.

    The checks, their cut-offs, and how often each erred on simulated programs are in
    :data:`~pyro_vae.evaluation.findings.CHECKS`. A check that the program does not allow, such as the amortization gap
    of a flow, is listed as not measured.

    Args:
        program: a :class:`~pyro_vae.VAE`, or anything with ``model`` and ``guide``.
        x: held-out data, a Dataset or (N, ...), the first argument of model and guide, N at least 30.
        context: their further arguments.
        train: data that the program was trained on, a Dataset, a tensor, or a tuple of data and contexts; None leaves
            out the check for overfitting.
        labels: of the data (N,), for their -log p(x) label by label.
        num_particles: K, draws of the guide per datum, at least 25.
        max_data: look at so many of the data, chosen by lot, of the held-out and of the training data each.
        plate: name of the plate over the data.
        seed: of all draws; the global generators are left as they were.

    Raises:
        ValueError: fewer than 30 data; a number too small; labels that are not one for each datum; data that the model
            cannot have made, or NaN densities.

    Example:
        >>> from types import SimpleNamespace
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the posterior has the scale 0.71
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.3))
        >>> x = 2**0.5 * torch.randn(200, generator=torch.Generator().manual_seed(0))
        >>> verdicts = report(SimpleNamespace(model=model, guide=guide), x)
        >>> [finding.name for finding in verdicts.found if finding.check.severity == "fault"]
        ['narrow guide', 'amortization gap']
    """
    checks.whole("report", "num_particles", num_particles, 25)
    checks.whole("report", "max_data", max_data, MIN_DATA)
    checks.whole("report", "seed", seed, 0)
    args = (x, *context)
    if is_set(train):
        train = rows_of("report", program, train, seed)
    given = None if train is None else train if isinstance(train, tuple) else (train,)
    _check_rows(args, given, labels)
    with random_state(args), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "log_marginal_likelihood: expected Pareto", UserWarning)  # a check says so
        torch.manual_seed(seed)
        rows = _chosen(len(x), max_data, x.device)
        examination = _Examination(program, tuple(a[rows] for a in args), num_particles, plate)
        if given is not None:
            chosen = _chosen(len(given[0]), max_data, given[0].device)
            given = tuple(a[chosen] for a in given)
        return examination.report(given, None if labels is None else labels.to(x.device)[rows])


class _Examination:
    """Makes one check after another, and keeps what they find."""

    def __init__(self, program: Program, args: tuple[Tensor, ...], num_particles: int, plate: str) -> None:
        self._program, self._args, self._k, self._plate = program, args, num_particles, plate
        self._findings: list[Finding] = []
        self._figures: dict[str, Estimate] = {}
        self._not_measured: dict[str, str] = {}

    def report(self, train: tuple[Tensor, ...] | None, labels: Tensor | None) -> Report:
        evidence = self._evidence(self._args)
        self._figures["nll"] = Estimate.of(-evidence.value, self._k)
        self._find("unreliable importance weights", evidence.estimates()["unreliable"])
        self._terms()
        units = self._attempt("units", lambda: self._units())
        predictive = self._attempt("predictions", lambda: self._predictive())
        if train is not None:
            self._overfitting(evidence, self._evidence(train))
        if len(self._args) > 1:
            self._attempt("context", lambda: self._context(evidence))
        ranks = self._simulated()
        if units is not None:
            self._attempt("amortization gap", lambda: self._amortization(units))
        order = list(CHECKS)
        return Report(
            findings=tuple(sorted(self._findings, key=lambda finding: order.index(finding.name))),
            figures=self._figures,
            by_label={} if labels is None else _by_label(-evidence.value, labels, self._k),
            not_measured=self._not_measured,
            log_marginal_likelihood=evidence,
            units=units,
            calibration=ranks,
            predictive=predictive,
            num_data=len(self._args[0]),
            num_particles=self._k,
        )

    def _find(self, name: str, estimate: Estimate, detail: str = "") -> None:
        """Judges a figure; one that is no number is not taken for a good one."""
        if math.isnan(estimate.value):
            self._not_measured[name] = "the figure is NaN"
        else:
            self._findings.append(Finding.of(name, estimate, detail))

    def _attempt(self, name: str, measure: Callable[[], T]) -> T | None:
        """What a program may not allow. What is wrong with the arguments has been said by the evidence before."""
        try:
            return measure()
        except (ValueError, NotImplementedError) as error:
            self._not_measured[name] = str(error).split("\n")[0]
            return None

    def _evidence(self, args: tuple[Tensor, ...]) -> LogMarginalLikelihood:
        return log_marginal_likelihood(self._program, *args, num_particles=self._k, plate=self._plate, progress=False)

    def _terms(self) -> None:
        """The ELBO's terms, and what of the rate is information."""
        terms = self._attempt(
            "rate and distortion",
            lambda: rate_distortion(self._program, *self._args, num_particles=_DRAWS, plate=self._plate),
        )
        if terms is None:
            return
        self._figures |= {"elbo": terms.elbo, "rate": terms.rate, "distortion": terms.distortion}
        surgery = self._attempt(
            "aggregate posterior", lambda: elbo_surgery(self._program, *self._args, plate=self._plate)
        )
        if surgery is None:
            self._find("collapsed posterior", terms.rate)
            return
        bound = surgery.mutual_information_bound
        self._figures |= {
            "mutual_information": surgery.mutual_information,
            "mutual_information_bound": bound,
            "marginal_kl": surgery.marginal_kl,
        }
        self._find("collapsed posterior", surgery.mutual_information)
        least = Estimate(
            surgery.rate.value - bound.value,
            surgery.rate.standard_error + bound.standard_error,  # of a difference, at most
            "nats",
            bound.num_data,
            bound.num_particles,
        )
        self._find("prior unlike the posteriors", least)

    def _units(self) -> ActiveUnits:
        units = active_units(self._program, *self._args, num_particles=_DRAWS, plate=self._plate)
        unused = {
            name: variance + 3 * units.standard_error[name] < units.threshold
            for name, variance in units.variance.items()
        }
        names = [f"{n}{list(map(int, i))}" for n, which in unused.items() for i in torch.nonzero(which)]
        total = sum(which.numel() for which in unused.values())
        detail = f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''}; of {total}" if names else ""
        self._find("unused units", Estimate(len(names), 0.0, "units", units.num_data, units.num_particles), detail)
        return units

    def _predictive(self) -> PredictiveChecks:
        result = predictive_checks(self._program, *self._args, num_particles=self._k, plate=self._plate)
        shares = ((result.inside_50, 0.5), (result.inside_90, 0.9))
        share, expected = max(shares, key=lambda pair: abs(pair[0].value - pair[1]))
        off = Estimate(
            abs(share.value - expected), share.standard_error, "of elements", share.num_data, share.num_particles
        )
        self._figures |= {"elements_inside_50": result.inside_50, "elements_inside_90": result.inside_90}
        self._find("likelihood of wrong spread", off, f"{share.value:.3f} within {expected:.0%}")
        self._find("improbable reconstruction", result.improbable)
        if result.tails is None:
            self._not_measured["tails of the likelihood"] = "discrete data, or no mean and variance in closed form"
        else:
            heavier = "heavier" if result.tails.value > 0 else "lighter"
            self._find("likelihood of wrong tails", replace(result.tails, value=abs(result.tails.value)), heavier)
        return result

    def _overfitting(self, held_out: LogMarginalLikelihood, train: LogMarginalLikelihood) -> None:
        there, here = train.mean, held_out.mean
        self._figures["nll_of_training_data"] = Estimate.of(-train.value, self._k)
        error = math.hypot(there.standard_error, here.standard_error)
        self._find("overfitting", Estimate(there.value - here.value, error, "nats", here.num_data, self._k))

    def _context(self, evidence: LogMarginalLikelihood) -> None:
        x, *context = self._args
        order = torch.randperm(len(x), device=x.device)
        other = self._evidence((x, *(c[order] for c in context)))
        self._find("context without information", Estimate.of(evidence.value - other.value, self._k))

    def _simulated(self) -> Calibration | None:
        """Checks for which the truth must be known: latents, and bounds from above."""
        rows = torch.arange(max(_SIMULATED, len(self._args[0])), device=self._args[0].device) % len(self._args[0])
        simulation: Simulation | None = self._attempt(
            "simulation", lambda: simulate(self._program, *(a[rows] for a in self._args))
        )
        if simulation is None:
            return None

        def bounds() -> None:
            result = importance_bounds(self._program, simulation, num_particles=self._k, plate=self._plate)
            estimates = result.estimates()
            self._figures |= {f"log_p_of_simulated_data, {name}": estimates[name] for name in ("lower", "upper")}
            self._find("uncertain log p(x)", result.gap)

        def ranks() -> Calibration:
            result = calibration(self._program, simulation, plate=self._plate)
            self._find("narrow guide", result.coverage_90)
            self._find("wide guide", result.coverage_50)
            return result

        self._attempt("bounds of log p(x)", bounds)
        return self._attempt("calibration", ranks)

    def _amortization(self, units: ActiveUnits) -> None:
        num_units = sum(variance.numel() for variance in units.variance.values())
        result = amortization_gap(
            self._program,
            *(a[:_OPTIMIZED] for a in self._args),
            num_steps=200,
            plate=self._plate,
            progress=False,
        )
        gap = (result.optimized_elbo - result.elbo) / num_units
        self._find("amortization gap", Estimate.of(gap, result.num_particles, "nats per unit"))


def _chosen(n: int, most: int, device: torch.device) -> Tensor:
    return torch.randperm(n)[:most].to(device) if n > most else torch.arange(n, device=device)


def _by_label(nll: Tensor, labels: Tensor, num_particles: int) -> dict[str, Estimate]:
    return {str(label): Estimate.of(nll[labels == label], num_particles) for label in labels.unique().tolist()}


def _check_rows(args: tuple[Tensor, ...], train: tuple[Tensor, ...] | None, labels: Tensor | None) -> None:
    n = len(args[0])
    if n < MIN_DATA:
        raise ValueError(
            f"report: expected at least {MIN_DATA} data, for standard errors; got {n}. Pass more held-out data."
        )
    if train is not None:
        if not all(isinstance(a, Tensor) for a in train):
            raise TypeError(
                f"report: expected train a tensor, or a tuple of data and contexts; got "
                f"{[type(a).__name__ for a in train]}. Pass (x, *context)."
            )
        if len(train) != len(args) or any(
            a.dim() == 0 or a.shape[1:] != b.shape[1:] or len(a) != len(train[0]) or len(a) < MIN_DATA
            for a, b in zip(train, args, strict=False)
        ):
            raise ValueError(
                f"report: expected train of at least {MIN_DATA} data, of the shapes of x and context; got "
                f"{[tuple(a.shape) for a in train]}. Pass (x, *context) of the training data."
            )
    if labels is not None and labels.shape != (n,):
        raise ValueError(
            f"report: expected labels of shape ({n},), one for each datum; got {tuple(labels.shape)}. Pass classes as "
            "whole numbers."
        )
