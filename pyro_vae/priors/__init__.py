"""Priors p(z): modules whose forward takes nothing and returns a distribution over latents z."""

from pyro_vae.priors.base import Prior
from pyro_vae.priors.discrete import Bernoulli, OneHotCategorical, RelaxedBernoulli, RelaxedOneHotCategorical
from pyro_vae.priors.flows import MaskedAutoregressive, NeuralSpline, RealNVP
from pyro_vae.priors.laplace import Laplace
from pyro_vae.priors.normal import MixtureOfNormals, Normal, StandardNormal
from pyro_vae.priors.simplex import Dirichlet, LogisticNormal
from pyro_vae.priors.sphere import HypersphericalUniform
from pyro_vae.priors.vamp import VampPrior

__all__ = [
    "Bernoulli",
    "Dirichlet",
    "HypersphericalUniform",
    "Laplace",
    "LogisticNormal",
    "MaskedAutoregressive",
    "MixtureOfNormals",
    "NeuralSpline",
    "Normal",
    "OneHotCategorical",
    "Prior",
    "RealNVP",
    "RelaxedBernoulli",
    "RelaxedOneHotCategorical",
    "StandardNormal",
    "VampPrior",
]
