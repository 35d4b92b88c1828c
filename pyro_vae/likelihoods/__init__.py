"""Likelihoods p(x|z): modules from latents z to a distribution over data x.

The reconstruction term of a variational autoencoder is E_q[log p(x|z)], so the choice of a likelihood here is the
choice of what "reconstruction" means. Values of densities of different likelihoods compare only where they are
densities of the same data: binary, gray and integer pixels are three different data sets.

============================================================ =================================================
data                                                         likelihoods
============================================================ =================================================
0 or 1                                                       Bernoulli
[0, 1]                                                       ContinuousBernoulli
(0, 1)                                                       Beta, LogitNormal
real                                                         Normal, SigmaNormal, Laplace, Huber, StudentT,
                                                             Standardized
above 0                                                      LogNormal
times, some of them cut off                                  Censored
levels k / 255                                               DiscretizedLogistic, MixtureOfDiscretizedLogistics,
                                                             Categorical, Binomial, Dequantized
counts                                                       Poisson, NegativeBinomial, ZeroInflatedPoisson,
                                                             ZeroInflatedNegativeBinomial, Binomial, Multinomial
categories                                                   Categorical, OneHotCategorical
levels with an order                                         Ordinal
columns of several kinds                                     Mixed, Tabular
any of these with values missing                             MissingAtRandom
============================================================ =================================================
"""

from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.likelihoods.binary import Bernoulli
from pyro_vae.likelihoods.bounded import Beta, ContinuousBernoulli, LogitNormal
from pyro_vae.likelihoods.categorical import Categorical, OneHotCategorical, Ordinal
from pyro_vae.likelihoods.continuous import Huber, Laplace, LogNormal, Normal, SigmaNormal, StudentT
from pyro_vae.likelihoods.counts import (
    Binomial,
    Multinomial,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from pyro_vae.likelihoods.discretized import DiscretizedLogistic, MixtureOfDiscretizedLogistics
from pyro_vae.likelihoods.mixed import Mixed
from pyro_vae.likelihoods.tabular import Tabular
from pyro_vae.likelihoods.wrappers import Censored, Dequantized, MissingAtRandom, Standardized

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "Censored",
    "ContinuousBernoulli",
    "Dequantized",
    "DiscretizedLogistic",
    "Huber",
    "Laplace",
    "Likelihood",
    "LogNormal",
    "LogitNormal",
    "MissingAtRandom",
    "Mixed",
    "MixtureOfDiscretizedLogistics",
    "Multinomial",
    "NegativeBinomial",
    "Normal",
    "OneHotCategorical",
    "Ordinal",
    "Poisson",
    "SigmaNormal",
    "Standardized",
    "StudentT",
    "Tabular",
    "ZeroInflatedNegativeBinomial",
    "ZeroInflatedPoisson",
]
