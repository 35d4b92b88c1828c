"""What one run of a Pyro program tells: its structure, log-densities per datum, the terms of the ELBO by site.

The one tensor that every estimator is a function of comes from here, :func:`~pyro_vae.traces.densities.log_weights`.
Knows Pyro alone: any model and guide will do.
"""
