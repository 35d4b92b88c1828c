"""What the lab measures, line by line."""

from __future__ import annotations

from dataclasses import dataclass

from pyro_vae.evaluation import Estimate

SIGNIFICANT = 1e-3
"""The p-value below which a bias counts as one."""


@dataclass(frozen=True)
class Row:
    """An estimator and a group of parameters. Gradients are of the bound summed over the data, as optimizers see them.

    Attributes:
        estimator: its name.
        family: its bound and gradient without the number of particles, for plots against that number.
        group: name of the group.
        num_parameters: P.
        num_particles: K.
        draws: independent draws of bound and gradient.
        bound: average, in nats per datum.
        bound_error: its standard error.
        gap: log p(x) less the bound, in nats per datum.
        gap_error: its standard error.
        bias: Euclidean distance of the mean gradient from the reference, without what noise adds to it.
        bias_error: its standard error, of these draws and of the reference's, if it lies where noise is most; less
            otherwise, so that the p-value may tell of a bias that the error does not.
        bias_p_value: of no bias.
        mean: norm of the mean gradient.
        variance: of a gradient, summed over the parameters.
        variance_error: its standard error.
        snr: norm of the mean gradient over the root of the variance.
        snr_error: its standard error.
        cosine: of the angle between one gradient and the reference, averaged.
        cosine_error: its standard error.
        milliseconds: of a step, loss and gradients, median.
        peak_bytes: of the tensors that a step makes, at the moment when they are most.
    """

    estimator: str
    family: str
    group: str
    num_parameters: int
    num_particles: int
    draws: int
    bound: float
    bound_error: float
    gap: float
    gap_error: float
    bias: float
    bias_error: float
    bias_p_value: float
    mean: float
    variance: float
    variance_error: float
    snr: float
    snr_error: float
    cosine: float
    cosine_error: float
    milliseconds: float
    peak_bytes: int

    @property
    def biased(self) -> bool:
        """Whether the bias is significant, at a thousandth."""
        return self.bias_p_value < SIGNIFICANT


@dataclass(frozen=True)
class RacePoint:
    """How an estimator's program stands.

    Attributes:
        step: steps taken.
        seconds: that they took, evaluation left out.
        negative_elbo: -ELBO on the validation data.
        nll: -log p(x), importance-weighted.
    """

    step: int
    seconds: float
    negative_elbo: Estimate
    nll: Estimate
