"""Stochastic variational inference: one optimization step at a time."""

from pyro_vae.svi.svi import SVI, OptimizerFactory

__all__ = ["SVI", "OptimizerFactory"]
