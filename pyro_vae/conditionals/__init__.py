"""Conditionals: modules from y to a distribution over latents, for guides q(z|x) and for layers p(z1|z2)."""

from pyro_vae.conditionals.base import Conditional
from pyro_vae.conditionals.discrete import Bernoulli, OneHotCategorical, RelaxedBernoulli, RelaxedOneHotCategorical
from pyro_vae.conditionals.flows import InverseAutoregressiveFlow, NeuralSpline, RealNVP
from pyro_vae.conditionals.linear_flows import Householder, Planar, Sylvester
from pyro_vae.conditionals.normal import DiagonalNormal, FullRankNormal, LowRankNormal, MixtureOfNormals
from pyro_vae.conditionals.simplex import Dirichlet, LogisticNormal
from pyro_vae.conditionals.sphere import VonMisesFisher

__all__ = [
    "Bernoulli",
    "Conditional",
    "DiagonalNormal",
    "Dirichlet",
    "FullRankNormal",
    "Householder",
    "InverseAutoregressiveFlow",
    "LogisticNormal",
    "LowRankNormal",
    "MixtureOfNormals",
    "NeuralSpline",
    "OneHotCategorical",
    "Planar",
    "RealNVP",
    "RelaxedBernoulli",
    "RelaxedOneHotCategorical",
    "Sylvester",
    "VonMisesFisher",
]
