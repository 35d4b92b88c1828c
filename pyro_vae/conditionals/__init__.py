"""Conditionals: modules from y to a distribution over latents, for guides q(z|x) and for layers p(z1|z2)."""

from pyro_vae.conditionals.base import Conditional
from pyro_vae.conditionals.normal import DiagonalNormal

__all__ = ["Conditional", "DiagonalNormal"]
