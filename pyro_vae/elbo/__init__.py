"""Estimators of the evidence lower bound, as ``pyro.infer.ELBO`` subclasses for any Pyro model and guide."""

from pyro_vae.elbo.elbo import ELBO

__all__ = ["ELBO"]
