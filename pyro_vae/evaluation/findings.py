"""What is held against a program: cut-offs, how often each of them errs, and what to do.

A figure counts as beyond its cut-off when it is so by more than three standard errors. Cut-offs are sizes that matter,
so that a large data set does not make a fault of every small deviation, and the three standard errors keep a small one
from doing so: thirteen checks that each err once in 740 err together in at most 1.8% of healthy programs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from pyro_vae.evaluation.results import Estimate, rounded

STANDARD_ERRORS = 3.0
"""By which a figure is beyond its cut-off."""


@dataclass(frozen=True)
class Rates:
    """How often a check erred on simulated programs, see ``benchmarks/report_rates.py``.

    Attributes:
        missed: programs with the planted fault that were not found to have it.
        planted: programs with the fault; 0 where none was planted.
        false_alarms: healthy programs that were found to have it.
        healthy: programs without a fault, of those that the check applies to.
    """

    missed: int
    planted: int
    false_alarms: int
    healthy: int

    def __str__(self) -> str:
        missed = f"missed {self.missed} of {self.planted} planted, " if self.planted else "not planted, "
        return f"{missed}{self.false_alarms} false alarms in {self.healthy}"


@dataclass(frozen=True)
class Check:
    """A cut-off.

    Attributes:
        figure: what is looked at, in words.
        side: where the fault lies: above the cut-off, below it, or wherever the figure is not clearly above it.
        cutoff: in the unit of the figure.
        severity: a fault makes results wrong or bad; a note may be as it should be.
        meaning: of a figure beyond the cut-off.
        remedy: for it.
        rates: measured.
    """

    figure: str
    side: Literal["above", "below", "not above"]
    cutoff: float
    severity: Literal["fault", "note"]
    meaning: str
    remedy: str
    rates: Rates

    def finds(self, estimate: Estimate) -> bool:
        """Whether a figure is beyond the cut-off."""
        error = estimate.standard_error if math.isfinite(estimate.standard_error) else 0.0
        margin = STANDARD_ERRORS * error
        if self.side == "below":
            return estimate.value + margin < self.cutoff
        return (estimate.value - margin > self.cutoff) == (self.side == "above")


@dataclass(frozen=True)
class Finding:
    """One check of a program.

    Attributes:
        name: of the fault.
        found: whether the program has it.
        estimate: the figure, its standard error and its unit.
        check: the cut-off, the rates at which it errs, and the remedy.
        detail: which units or data, where that can be said.
    """

    name: str
    found: bool
    estimate: Estimate
    check: Check
    detail: str = ""

    @classmethod
    def of(cls, name: str, estimate: Estimate, detail: str = "") -> Finding:
        """The judgment on a figure."""
        return cls(name, CHECKS[name].finds(estimate), estimate, CHECKS[name], detail)

    @property
    def line(self) -> str:
        """The figure against its cut-off, in one line."""
        value, error = rounded(self.estimate.value, self.estimate.standard_error)
        against = {"above": "at most", "below": "at least", "not above": "clearly above"}[self.check.side]
        detail = f" ({self.detail})" if self.detail else ""
        return (
            f"{self.check.figure} {value} ± {error} {self.estimate.unit}, expected {against} {self.check.cutoff:g}"
            f"{detail}"
        )

    def __str__(self) -> str:
        if not self.found:
            exact = replace(self.estimate, standard_error=0.0)
            return f"{'unsure' if self.check.finds(exact) else 'ok':6} {self.name}: {self.line}"
        return (
            f"{self.check.severity.upper():6} {self.name}: {self.line} [{self.check.rates}]\n"
            f"       {self.check.meaning} {self.check.remedy}"
        )


CHECKS: dict[str, Check] = {
    "collapsed posterior": Check(
        "information of the latents about the data",
        "below",
        0.1,
        "fault",
        "The latents tell nothing about the data: the decoder alone is the model.",
        "Learn the scale of the likelihood where a large one is fixed; else raise beta from 0 over the first epochs, "
        "use free_bits, or a weaker decoder.",
        Rates(0, 50, 0, 200),
    ),
    "likelihood of wrong spread": Check(
        "deviation of the data from the central 50% or 90% of draws of their likelihood",
        "above",
        0.05,
        "fault",
        "Data are not spread as the likelihood says.",
        "Learn its scale (scale='learned' or 'per_element'), or take one of another family: NegativeBinomial for "
        "overdispersed counts, Beta or LogitNormal for bounded values.",
        Rates(41, 50, 0, 200),
    ),
    "likelihood of wrong tails": Check(
        "kurtosis of residuals against that of draws of their likelihood, as the size of a log ratio",
        "above",
        0.1,
        "fault",
        "Outliers are more frequent, or less, than the likelihood says.",
        "Take one of heavier tails (StudentT, Laplace) or of lighter ones, or learn a scale for each element.",
        Rates(4, 50, 0, 200),
    ),
    "improbable reconstruction": Check(
        "share of data less probable than 95% of draws of their likelihood",
        "above",
        0.15,
        "fault",
        "Data are reconstructed worse than the model itself expects.",
        "Train longer, enlarge the networks, or look for data unlike the training data.",
        Rates(0, 0, 0, 200),
    ),
    "overfitting": Check(
        "log p(x) of training data less that of held-out data",
        "above",
        0.5,
        "fault",
        "Training data are more probable than new ones by more than chance.",
        "Stop early (patience=...), use more data, or smaller networks.",
        Rates(3, 50, 0, 200),
    ),
    "context without information": Check(
        "log p(x|c) less log p(x|another datum's c)",
        "not above",
        0.01,
        "fault",
        "Another datum's context predicts as well as its own.",
        "Check that rows of data and context belong together, in training and here; else leave the context out.",
        Rates(0, 50, 0, 90),
    ),
    "narrow guide": Check(
        "latents of simulated data within the guide's central 90%",
        "below",
        0.8,
        "fault",
        "The guide says to know latents better than it does, of data that the model makes.",
        "Use a richer posterior (FullRankNormal, a flow) or IWELBO, and train longer.",
        Rates(0, 50, 0, 200),
    ),
    "wide guide": Check(
        "latents of simulated data within the guide's central 50%",
        "above",
        0.6,
        "fault",
        "The guide says to know latents worse than it does, of data that the model makes.",
        "Train longer, and check min_scale and beta, which is to end at 1.",
        Rates(0, 0, 0, 200),
    ),
    "amortization gap": Check(
        "ELBO lost by the shared network, per latent unit",
        "above",
        0.1,
        "fault",
        "The guide's network does not find the best distributions of its own family.",
        "Enlarge the guide's network, train longer, or take guide steps on held-out data.",
        Rates(0, 0, 0, 200),
    ),
    "unused units": Check(
        "latent units whose posterior mean does not move with the data",
        "above",
        0.0,
        "note",
        "These units tell the decoder nothing. It costs nothing where fewer suffice.",
        "If predictions are found wrong too, anneal beta so that units are taken into use; else use fewer.",
        Rates(0, 50, 0, 200),
    ),
    "prior unlike the posteriors": Check(
        "lower bound of KL(q(z) || p(z))",
        "above",
        1.0,
        "note",
        "Draws of the prior are not where the data are: samples look worse than reconstructions. The bound is "
        "blind where the latents tell more than log N.",
        "Use a prior that is learned: VampPrior, MixtureOfNormals, a flow.",
        Rates(0, 0, 0, 200),
    ),
    "unreliable importance weights": Check(
        "data with Pareto k-hat above 0.7",
        "above",
        0.2,
        "note",
        "log p(x) of these data is likely higher than estimated.",
        "Give log_marginal_likelihood proposal=proposals.Refined(), where the latents are Normal vectors, or use ais.",
        Rates(0, 0, 0, 200),
    ),
    "uncertain log p(x)": Check(
        "distance of the two bounds of log p(x), of simulated data",
        "above",
        0.5,
        "note",
        "Importance sampling does not pin log p(x) down, so models that are closer cannot be told apart.",
        "Draw more particles, or use ais, and bdmc for its bounds.",
        Rates(0, 0, 0, 200),
    ),
}
"""The checks by name, the most telling first."""
