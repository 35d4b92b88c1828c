"""Variational autoencoders as probabilistic programs: a Pyro model p(z) p(x|z), a guide q(z|x), and the ELBO."""

import importlib
from types import ModuleType

from pyro_vae import (
    checkpoint,
    conditionals,
    data,
    defaults,
    elbo,
    evaluation,
    lab,
    likelihoods,
    nets,
    priors,
    schedules,
)
from pyro_vae.checkpoint.hub import from_pretrained, push_to_hub
from pyro_vae.checkpoint.programs import load, save
from pyro_vae.losses import explain
from pyro_vae.models import VAE, ConditionalVAE, HierarchicalVAE, SemiSupervisedVAE, TopDownVAE
from pyro_vae.svi import SVI
from pyro_vae.training import History, fit
from pyro_vae.version import __version__ as __version__

__all__ = [
    "SVI",
    "VAE",
    "ConditionalVAE",
    "HierarchicalVAE",
    "History",
    "SemiSupervisedVAE",
    "TopDownVAE",
    "checkpoint",
    "conditionals",
    "data",
    "defaults",
    "elbo",
    "evaluation",
    "explain",
    "fit",
    "from_pretrained",
    "lab",
    "likelihoods",
    "load",
    "nets",
    "priors",
    "push_to_hub",
    "save",
    "schedules",
]


def __getattr__(name: str) -> ModuleType:
    """Modules that are imported when they are used, since not all users need what they import."""
    if name in ("coding", "export", "lightning", "plots", "sklearn", "testing", "trackers"):
        return importlib.import_module(f"pyro_vae.{name}")
    raise AttributeError(f"module 'pyro_vae' has no attribute {name!r}")
