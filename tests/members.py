"""Every likelihood, prior, conditional and program, by name: the table that the contract tests run over.

An entry is a function without arguments that builds a small member: latent size 3, data of a small event shape.
"""

from __future__ import annotations

from collections.abc import Callable

from pyro_vae import conditionals, likelihoods, nets, priors

LATENT = 3

LIKELIHOODS: dict[str, Callable[[], likelihoods.Likelihood]] = {
    "Bernoulli": lambda: likelihoods.Bernoulli(nets.MLP(LATENT, [5]), (1, 2, 2)),
    "ContinuousBernoulli": lambda: likelihoods.ContinuousBernoulli(nets.MLP(LATENT, [5]), (1, 2, 2)),
    "Normal, learned": lambda: likelihoods.Normal(nets.MLP(LATENT, [5]), (1, 2, 2)),
    "Normal, fixed": lambda: likelihoods.Normal(nets.MLP(LATENT, [5]), 4, scale=0.5),
    "Normal, per element": lambda: likelihoods.Normal(nets.MLP(LATENT, [5]), 4, scale="per_element"),
}

PRIORS: dict[str, Callable[[], priors.Prior]] = {
    "StandardNormal": lambda: priors.StandardNormal(LATENT),
    "MixtureOfNormals": lambda: priors.MixtureOfNormals(LATENT, num_components=4),
}

CONDITIONALS: dict[str, Callable[[], conditionals.Conditional]] = {
    "DiagonalNormal": lambda: conditionals.DiagonalNormal(nets.MLP((1, 2, 2), [5]), LATENT),
}
