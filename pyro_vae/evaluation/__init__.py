"""What was learned: figures of a trained program, per datum and in nats."""

from pyro_vae.evaluation.bits import bits_per_dim
from pyro_vae.evaluation.terms import elbo_terms

__all__ = ["bits_per_dim", "elbo_terms"]
