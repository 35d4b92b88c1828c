"""Variational autoencoders as probabilistic programs: a Pyro model p(z) p(x|z), a guide q(z|x), and the ELBO."""

from pyro_vae import checkpoint, conditionals, data, elbo, evaluation, lab, likelihoods, nets, priors, schedules
from pyro_vae.conditional import ConditionalVAE
from pyro_vae.hierarchical import HierarchicalVAE
from pyro_vae.semi_supervised import SemiSupervisedVAE
from pyro_vae.svi import SVI
from pyro_vae.training import History, fit
from pyro_vae.vae import VAE

__version__ = "0.1.0"

__all__ = [
    "SVI",
    "VAE",
    "ConditionalVAE",
    "HierarchicalVAE",
    "History",
    "SemiSupervisedVAE",
    "checkpoint",
    "conditionals",
    "data",
    "elbo",
    "evaluation",
    "fit",
    "lab",
    "likelihoods",
    "nets",
    "priors",
    "schedules",
]
