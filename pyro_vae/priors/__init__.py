"""Priors p(z): modules whose forward takes nothing and returns a distribution over latents z."""

from pyro_vae.priors.base import Prior
from pyro_vae.priors.normal import MixtureOfNormals, StandardNormal

__all__ = ["MixtureOfNormals", "Prior", "StandardNormal"]
