"""What was learned: figures of a trained program, per datum and in nats."""

from pyro_vae.evaluation.annealing import AnnealedImportanceSampling, BidirectionalMonteCarlo, ais, bdmc
from pyro_vae.evaluation.bits import bits_per_dim
from pyro_vae.evaluation.importance import LogMarginalLikelihood, log_marginal_likelihood, posterior_samples
from pyro_vae.evaluation.results import Estimate
from pyro_vae.evaluation.simulation import Simulation, simulate
from pyro_vae.evaluation.terms import elbo_terms

__all__ = [
    "AnnealedImportanceSampling",
    "BidirectionalMonteCarlo",
    "Estimate",
    "LogMarginalLikelihood",
    "Simulation",
    "ais",
    "bdmc",
    "bits_per_dim",
    "elbo_terms",
    "log_marginal_likelihood",
    "posterior_samples",
    "simulate",
]
