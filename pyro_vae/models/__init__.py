"""Variational autoencoders as pairs of Pyro programs: a model p(z) p(x|z), a guide q(z|x), and what they share."""

from pyro_vae.models.conditional import ConditionalVAE
from pyro_vae.models.hierarchical import HierarchicalVAE
from pyro_vae.models.program import Program
from pyro_vae.models.semi_supervised import SemiSupervisedVAE
from pyro_vae.models.top_down import TopDownVAE
from pyro_vae.models.vae import VAE

__all__ = ["VAE", "ConditionalVAE", "HierarchicalVAE", "Program", "SemiSupervisedVAE", "TopDownVAE"]
