"""Densities that Pyro and torch lack, or that need another form to be exact: ``TorchDistribution`` subclasses."""

from pyro_vae.distributions import kl as _kl  # noqa: F401  registers closed forms
from pyro_vae.distributions.affine import Affine
from pyro_vae.distributions.censored import Censored
from pyro_vae.distributions.continuous_bernoulli import ContinuousBernoulli
from pyro_vae.distributions.dequantized import Dequantized, dequantize
from pyro_vae.distributions.discretized_logistic import DiscretizedLogistic, MixtureOfDiscretizedLogistics
from pyro_vae.distributions.elementwise import elementwise_log_prob
from pyro_vae.distributions.huber import Huber
from pyro_vae.distributions.hyperspherical_uniform import HypersphericalUniform
from pyro_vae.distributions.in_double import Beta, Binomial, NegativeBinomial, Poisson, StudentT
from pyro_vae.distributions.joint import Joint
from pyro_vae.distributions.lattices import Lattice, lattice
from pyro_vae.distributions.log_dirichlet import LogDirichlet
from pyro_vae.distributions.log_logistic_normal import LogLogisticNormal
from pyro_vae.distributions.log_space import from_log_space, log_odds, log_simplex
from pyro_vae.distributions.logit_normal import LogitNormal
from pyro_vae.distributions.missing_at_random import MissingAtRandom, or_missing
from pyro_vae.distributions.mixture_of_diagonal_normals import MixtureOfDiagonalNormals
from pyro_vae.distributions.multinomial import Multinomial, counts_of
from pyro_vae.distributions.normalizing_flow import NormalizingFlow
from pyro_vae.distributions.one_hot_categorical import OneHotCategorical
from pyro_vae.distributions.relaxed import LogOddsRelaxedBernoulli, LogRelaxedOneHotCategorical
from pyro_vae.distributions.reshaped import Shaped, shaped
from pyro_vae.distributions.sylvester import HouseholderTransform, PlanarTransform, SylvesterTransform
from pyro_vae.distributions.von_mises_fisher import VonMisesFisher
from pyro_vae.distributions.zero_inflated import ZeroInflated

__all__ = [
    "Affine",
    "Beta",
    "Binomial",
    "Censored",
    "ContinuousBernoulli",
    "Dequantized",
    "DiscretizedLogistic",
    "HouseholderTransform",
    "Huber",
    "HypersphericalUniform",
    "Joint",
    "Lattice",
    "LogDirichlet",
    "LogLogisticNormal",
    "LogOddsRelaxedBernoulli",
    "LogRelaxedOneHotCategorical",
    "LogitNormal",
    "MissingAtRandom",
    "MixtureOfDiagonalNormals",
    "MixtureOfDiscretizedLogistics",
    "Multinomial",
    "NegativeBinomial",
    "NormalizingFlow",
    "OneHotCategorical",
    "PlanarTransform",
    "Poisson",
    "Shaped",
    "StudentT",
    "SylvesterTransform",
    "VonMisesFisher",
    "ZeroInflated",
    "counts_of",
    "dequantize",
    "elementwise_log_prob",
    "from_log_space",
    "lattice",
    "log_odds",
    "log_simplex",
    "or_missing",
    "shaped",
]
