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
levels k / 255                                               DiscretizedLogistic, MixtureOfDiscretizedLogistics,
                                                             Categorical, Binomial, Dequantized
counts                                                       Poisson, NegativeBinomial,
                                                             ZeroInflatedNegativeBinomial, Binomial, Multinomial
categories                                                   Categorical, OneHotCategorical
columns of several kinds                                     Mixed
any of these with values missing                             MissingAtRandom
============================================================ =================================================
"""

from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.likelihoods.binary import Bernoulli
from pyro_vae.likelihoods.bounded import Beta, ContinuousBernoulli, LogitNormal
from pyro_vae.likelihoods.categorical import Categorical, OneHotCategorical
from pyro_vae.likelihoods.continuous import Huber, Laplace, Normal, SigmaNormal, StudentT
from pyro_vae.likelihoods.counts import Binomial, Multinomial, NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from pyro_vae.likelihoods.discretized import DiscretizedLogistic, MixtureOfDiscretizedLogistics
from pyro_vae.likelihoods.mixed import Mixed
from pyro_vae.likelihoods.wrappers import Dequantized, MissingAtRandom, Standardized

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "ContinuousBernoulli",
    "Dequantized",
    "DiscretizedLogistic",
    "Huber",
    "Laplace",
    "Likelihood",
    "LogitNormal",
    "MissingAtRandom",
    "Mixed",
    "MixtureOfDiscretizedLogistics",
    "Multinomial",
    "NegativeBinomial",
    "Normal",
    "OneHotCategorical",
    "Poisson",
    "SigmaNormal",
    "Standardized",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
]
