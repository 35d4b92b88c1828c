"""Likelihoods p(x|z): modules from latents z to a distribution over data x.

The reconstruction term of a variational autoencoder is E_q[log p(x|z)], so the choice of a likelihood here is the
choice of what "reconstruction" means. Values of densities of different likelihoods compare only where they are
densities of the same data: binary, grey and integer pixels are three different data sets.
"""

from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.likelihoods.binary import Bernoulli
from pyro_vae.likelihoods.continuous import ContinuousBernoulli, Normal

__all__ = ["Bernoulli", "ContinuousBernoulli", "Likelihood", "Normal"]
