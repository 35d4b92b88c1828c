"""Densities that Pyro and torch lack, or that need another form to be exact: ``TorchDistribution`` subclasses."""

from pyro_vae.distributions.continuous_bernoulli import ContinuousBernoulli
from pyro_vae.distributions.dequantized import Dequantized, dequantize
from pyro_vae.distributions.discretized_logistic import DiscretizedLogistic, MixtureOfDiscretizedLogistics
from pyro_vae.distributions.elementwise import elementwise_log_prob
from pyro_vae.distributions.joint import Joint
from pyro_vae.distributions.lattice import Lattice, lattice
from pyro_vae.distributions.logit_normal import LogitNormal
from pyro_vae.distributions.missing_at_random import MissingAtRandom
from pyro_vae.distributions.multinomial import Multinomial

__all__ = [
    "ContinuousBernoulli",
    "Dequantized",
    "DiscretizedLogistic",
    "Joint",
    "Lattice",
    "LogitNormal",
    "MissingAtRandom",
    "MixtureOfDiscretizedLogistics",
    "Multinomial",
    "dequantize",
    "elementwise_log_prob",
    "lattice",
]
