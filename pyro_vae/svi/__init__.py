"""Stochastic variational inference: one optimization step at a time."""

from pyro_vae.svi.svi import SVI
from pyro_vae.svi.update import OptimizerFactory

__all__ = ["SVI", "OptimizerFactory"]
