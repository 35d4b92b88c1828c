"""What was learned: figures of a trained program, per datum and in nats."""

from pyro_vae.evaluation import proposals
from pyro_vae.evaluation.amortization import AmortizationGap, amortization_gap
from pyro_vae.evaluation.annealing import AnnealedImportanceSampling, BidirectionalMonteCarlo, ais, bdmc
from pyro_vae.evaluation.anomalies import Scores, Threshold, auc, score
from pyro_vae.evaluation.bits import bits_per_dim
from pyro_vae.evaluation.conditional import LogConditionalLikelihood, log_conditional_likelihood
from pyro_vae.evaluation.distortion import (
    RateDistortion,
    RateDistortionCurve,
    rate_distortion,
    rate_distortion_curve,
    reconstruction_error,
)
from pyro_vae.evaluation.findings import Finding
from pyro_vae.evaluation.importance import LogMarginalLikelihood, log_marginal_likelihood, posterior_samples
from pyro_vae.evaluation.imputation import Imputation, condition, impute
from pyro_vae.evaluation.inference_data import to_inference_data
from pyro_vae.evaluation.latents import latent_means, write_latents
from pyro_vae.evaluation.predictive import PredictiveChecks, predictive_checks
from pyro_vae.evaluation.ranks import Calibration, calibration
from pyro_vae.evaluation.rates import Rate
from pyro_vae.evaluation.results import Estimate
from pyro_vae.evaluation.shares import over_ranks
from pyro_vae.evaluation.simulation import Simulation, simulate
from pyro_vae.evaluation.surgery import ElboSurgery, elbo_surgery
from pyro_vae.evaluation.terms import elbo_terms
from pyro_vae.evaluation.two_sided import ImportanceBounds, importance_bounds
from pyro_vae.evaluation.units import ActiveUnits, active_units
from pyro_vae.evaluation.verdicts import Report, report

__all__ = [
    "ActiveUnits",
    "AmortizationGap",
    "AnnealedImportanceSampling",
    "BidirectionalMonteCarlo",
    "Calibration",
    "ElboSurgery",
    "Estimate",
    "Finding",
    "ImportanceBounds",
    "Imputation",
    "LogConditionalLikelihood",
    "LogMarginalLikelihood",
    "PredictiveChecks",
    "Rate",
    "RateDistortion",
    "RateDistortionCurve",
    "Report",
    "Scores",
    "Simulation",
    "Threshold",
    "active_units",
    "ais",
    "amortization_gap",
    "auc",
    "bdmc",
    "bits_per_dim",
    "calibration",
    "condition",
    "elbo_surgery",
    "elbo_terms",
    "importance_bounds",
    "impute",
    "latent_means",
    "log_conditional_likelihood",
    "log_marginal_likelihood",
    "over_ranks",
    "posterior_samples",
    "predictive_checks",
    "proposals",
    "rate_distortion",
    "rate_distortion_curve",
    "reconstruction_error",
    "report",
    "score",
    "simulate",
    "to_inference_data",
    "write_latents",
]
