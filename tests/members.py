"""Every likelihood, prior, conditional and program, by name: the table that the contract tests run over.

An entry is a function without arguments that builds a small member: latent size 2, data of a small event shape. That of
a program comes with the arguments of its model and guide: seven data, and their context.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from pyro_vae import (
    VAE,
    ConditionalVAE,
    HierarchicalVAE,
    SemiSupervisedVAE,
    TopDownVAE,
    conditionals,
    likelihoods,
    nets,
    priors,
)
from pyro_vae.tables import Column, Table

LATENT = 2

TABLE = Table(
    [
        Column("height", "real", center=1.7, spread=0.1),
        Column("eyes", "category", values=("blue", "brown", "green")),
        Column("income", "positive", center=10.0, spread=0.5),
        Column("weight", "real", center=70.0, spread=12.0),
        Column("children", "count", "int64", center=1.0),
        Column("stage", "ordinal", "int64", values=(1, 2, 3, 4), center=1.5),
        Column("smokes", "binary", "bool", values=(False, True)),
    ]
)

LIKELIHOODS: dict[str, Callable[[], likelihoods.Likelihood]] = {
    "Bernoulli": lambda: likelihoods.Bernoulli(nets.MLP(LATENT, [5]), (1, 2, 2)),
    "ContinuousBernoulli": lambda: likelihoods.ContinuousBernoulli(nets.MLP(LATENT, [5]), (1, 2, 2)),
    "Beta": lambda: likelihoods.Beta(nets.MLP(LATENT, [5]), (1, 2, 2)),
    "LogitNormal": lambda: likelihoods.LogitNormal(nets.MLP(LATENT, [5]), (1, 2, 2)),
    "Normal, learned": lambda: likelihoods.Normal(nets.MLP(LATENT, [5]), (1, 2, 2)),
    "Normal, fixed": lambda: likelihoods.Normal(nets.MLP(LATENT, [5]), 4, scale=0.5),
    "Normal, per element": lambda: likelihoods.Normal(nets.MLP(LATENT, [5]), 4, scale="per_element"),
    "Normal, convolutional": lambda: likelihoods.Normal(nets.ConvDecoder(LATENT, (1, 2, 2), [5]), (1, 2, 2)),
    "Normal, given a label": lambda: likelihoods.Normal(nets.MLP(LATENT, [5], context_shapes=[2]), 4),
    "LogNormal": lambda: likelihoods.LogNormal(nets.MLP(LATENT, [5]), 4),
    "LogNormal, standardized": lambda: likelihoods.LogNormal(
        nets.MLP(LATENT, [5]), 2, standardize=nets.Standardize(torch.tensor([5.0, -3.0]), torch.tensor([0.1, 2.0]))
    ),
    "SigmaNormal": lambda: likelihoods.SigmaNormal(nets.MLP(LATENT, [5]), 4),
    "Laplace": lambda: likelihoods.Laplace(nets.MLP(LATENT, [5]), 4),
    "Huber": lambda: likelihoods.Huber(nets.MLP(LATENT, [5]), 4),
    "Huber, fixed": lambda: likelihoods.Huber(nets.MLP(LATENT, [5]), 4, delta=0.3, scale=0.5),
    "StudentT": lambda: likelihoods.StudentT(nets.MLP(LATENT, [5]), 4),
    "StudentT, fixed": lambda: likelihoods.StudentT(nets.MLP(LATENT, [5]), 4, df=3.0, scale=0.5),
    "Categorical": lambda: likelihoods.Categorical(3, nets.MLP(LATENT, [5]), 4),
    "Categorical, levels": lambda: likelihoods.Categorical(256, nets.MLP(LATENT, [5]), (1, 2, 2), spacing=1 / 255),
    "Ordinal": lambda: likelihoods.Ordinal(4, nets.MLP(LATENT, [5]), 3),
    "Ordinal, two levels": lambda: likelihoods.Ordinal(2, nets.MLP(LATENT, [5]), (1, 2, 2)),
    "OneHotCategorical": lambda: likelihoods.OneHotCategorical(nets.MLP(LATENT, [5]), 4),
    "Binomial": lambda: likelihoods.Binomial(nets.MLP(LATENT, [5]), (1, 2, 2)),
    "Binomial, counts": lambda: likelihoods.Binomial(nets.MLP(LATENT, [5]), 4, total_count=16, spacing=1.0),
    "Poisson": lambda: likelihoods.Poisson(nets.MLP(LATENT, [5]), 4),
    "Poisson, library size": lambda: likelihoods.Poisson(nets.MLP(LATENT, [5]), 4, library_size=True),
    "NegativeBinomial": lambda: likelihoods.NegativeBinomial(nets.MLP(LATENT, [5]), 4),
    "NegativeBinomial, library size": lambda: likelihoods.NegativeBinomial(nets.MLP(LATENT, [5]), 4, library_size=True),
    "ZeroInflatedNegativeBinomial": lambda: likelihoods.ZeroInflatedNegativeBinomial(nets.MLP(LATENT, [5]), 4),
    "ZeroInflatedNegativeBinomial, library size": lambda: likelihoods.ZeroInflatedNegativeBinomial(
        nets.MLP(LATENT, [5]), 4, library_size=True
    ),
    "ZeroInflatedPoisson": lambda: likelihoods.ZeroInflatedPoisson(nets.MLP(LATENT, [5]), 4),
    "ZeroInflatedPoisson, library size": lambda: likelihoods.ZeroInflatedPoisson(
        nets.MLP(LATENT, [5]), 4, library_size=True
    ),
    "Multinomial": lambda: likelihoods.Multinomial(nets.MLP(LATENT, [5]), 4),
    "DiscretizedLogistic": lambda: likelihoods.DiscretizedLogistic(nets.MLP(LATENT, [5]), (1, 2, 2)),
    "DiscretizedLogistic, per element": lambda: likelihoods.DiscretizedLogistic(
        nets.MLP(LATENT, [5]), 4, levels=17, scale="per_element"
    ),
    "MixtureOfDiscretizedLogistics, gray": lambda: likelihoods.MixtureOfDiscretizedLogistics(
        nets.ConvDecoder(LATENT, (1, 2, 2), [5]), (1, 2, 2), num_components=3, levels=16
    ),
    "MixtureOfDiscretizedLogistics, RGB": lambda: likelihoods.MixtureOfDiscretizedLogistics(
        nets.ConvDecoder(LATENT, (3, 1, 2), [5]), (3, 1, 2), num_components=3, levels=5
    ),
    "Mixed": lambda: likelihoods.Mixed(
        nets.MLP(LATENT, [5]),
        parts=[
            (1, partial(likelihoods.Categorical, 3)),
            (slice(0, 3, 2), partial(likelihoods.Normal, scale="per_element")),
            (3, likelihoods.NegativeBinomial),
            (slice(4, 7), likelihoods.OneHotCategorical),
        ],
    ),
    "Tabular": lambda: likelihoods.Tabular(nets.MLP(LATENT, [5]), TABLE),
    "MissingAtRandom, Tabular": lambda: likelihoods.MissingAtRandom(likelihoods.Tabular(nets.MLP(LATENT, [5]), TABLE)),
    "MissingAtRandom": lambda: likelihoods.MissingAtRandom(likelihoods.LogitNormal(nets.MLP(LATENT, [5]), 4)),
    "MissingAtRandom, Mixed": lambda: likelihoods.MissingAtRandom(
        likelihoods.Mixed(
            nets.MLP(LATENT, [5]), parts=[(slice(1, 3), likelihoods.StudentT), (0, likelihoods.Bernoulli)]
        )
    ),
    "Standardized": lambda: likelihoods.Standardized(
        likelihoods.Normal(nets.MLP(LATENT, [5]), 3),
        nets.Standardize(torch.tensor([5.0, -3e3, 0.0]), torch.tensor([0.1, 1e4, 1.0])),
    ),
    "Standardized SigmaNormal": lambda: likelihoods.Standardized(
        likelihoods.SigmaNormal(nets.MLP(LATENT, [5]), 3),
        nets.Standardize(torch.tensor([5.0, -3e3, 0.0]), torch.tensor([0.1, 1e4, 1.0])),
    ),
    "Censored": lambda: likelihoods.Censored(likelihoods.LogNormal(nets.MLP(LATENT, [5]), 3)),
    "Censored Normal": lambda: likelihoods.Censored(likelihoods.Normal(nets.MLP(LATENT, [5]), 1, scale="per_element")),
    "Dequantized": lambda: likelihoods.Dequantized(likelihoods.Normal(nets.MLP(LATENT, [5]), (1, 2, 2))),
}

PRIORS: dict[str, Callable[[], priors.Prior]] = {
    "StandardNormal": lambda: priors.StandardNormal(LATENT),
    "Normal": lambda: priors.Normal(LATENT),
    "MixtureOfNormals": lambda: priors.MixtureOfNormals(LATENT, num_components=4),
    "MixtureOfNormals, given means": lambda: priors.MixtureOfNormals(LATENT, loc=torch.eye(LATENT)),
    "VampPrior": lambda: priors.VampPrior(torch.linspace(0, 255, 20).byte().reshape(5, 1, 2, 2)).bind(
        conditionals.DiagonalNormal(nets.MLP((1, 2, 2), [5]), LATENT)
    ),
    "RealNVP": lambda: priors.RealNVP(LATENT, hidden=[8]),
    "NeuralSpline": lambda: priors.NeuralSpline(LATENT, num_layers=2, hidden=[8], num_bins=4),
    "MaskedAutoregressive": lambda: priors.MaskedAutoregressive(LATENT, hidden=[8]),
    "Laplace": lambda: priors.Laplace(LATENT),
    "Dirichlet": lambda: priors.Dirichlet(LATENT, concentration=0.7),
    "LogisticNormal": lambda: priors.LogisticNormal(LATENT),
    "HypersphericalUniform": lambda: priors.HypersphericalUniform(LATENT),
    "Bernoulli": lambda: priors.Bernoulli(LATENT),
    "OneHotCategorical": lambda: priors.OneHotCategorical(LATENT),
    "RelaxedBernoulli": lambda: priors.RelaxedBernoulli(LATENT),
    "RelaxedOneHotCategorical": lambda: priors.RelaxedOneHotCategorical(LATENT),
}

CONDITIONALS: dict[str, Callable[[], conditionals.Conditional]] = {
    "DiagonalNormal": lambda: conditionals.DiagonalNormal(nets.MLP((1, 2, 2), [5]), LATENT),
    "LowRankNormal": lambda: conditionals.LowRankNormal(nets.MLP((1, 2, 2), [5]), LATENT, rank=2),
    "FullRankNormal": lambda: conditionals.FullRankNormal(nets.MLP((1, 2, 2), [5]), LATENT),
    "MixtureOfNormals": lambda: conditionals.MixtureOfNormals(nets.MLP((1, 2, 2), [5]), LATENT, num_components=2),
    "InverseAutoregressiveFlow": lambda: conditionals.InverseAutoregressiveFlow(
        nets.MLP((1, 2, 2), [5]), LATENT, hidden=[8], context_dim=4
    ),
    "RealNVP": lambda: conditionals.RealNVP(nets.MLP((1, 2, 2), [5]), LATENT, hidden=[8], context_dim=4),
    "NeuralSpline": lambda: conditionals.NeuralSpline(
        nets.MLP((1, 2, 2), [5]), LATENT, num_layers=2, hidden=[8], num_bins=4, context_dim=4
    ),
    "Householder": lambda: conditionals.Householder(nets.MLP((1, 2, 2), [5]), LATENT),
    "Planar": lambda: conditionals.Planar(nets.MLP((1, 2, 2), [5]), LATENT),
    "Sylvester": lambda: conditionals.Sylvester(nets.MLP((1, 2, 2), [5]), LATENT, num_layers=2),
    "VonMisesFisher": lambda: conditionals.VonMisesFisher(nets.MLP((1, 2, 2), [5]), LATENT),
    "Dirichlet": lambda: conditionals.Dirichlet(nets.MLP((1, 2, 2), [5]), LATENT),
    "LogisticNormal": lambda: conditionals.LogisticNormal(nets.MLP((1, 2, 2), [5]), LATENT),
    "Bernoulli": lambda: conditionals.Bernoulli(nets.MLP((1, 2, 2), [5]), LATENT),
    "OneHotCategorical": lambda: conditionals.OneHotCategorical(nets.MLP((1, 2, 2), [5]), LATENT),
    "RelaxedBernoulli": lambda: conditionals.RelaxedBernoulli(nets.MLP((1, 2, 2), [5]), LATENT),
    "RelaxedOneHotCategorical": lambda: conditionals.RelaxedOneHotCategorical(nets.MLP((1, 2, 2), [5]), LATENT),
}


def _hierarchy(inference: Literal["bottom-up", "top-down"]) -> HierarchicalVAE:
    dims = (LATENT, 3, 4)
    inputs: tuple[nets.Shape, ...] = ((1, 2, 2), LATENT, 3) if inference == "bottom-up" else ((1, 2, 2), 5, 5)
    return HierarchicalVAE(
        priors.StandardNormal(4),
        [conditionals.DiagonalNormal(nets.MLP(above, [5]), dim) for dim, above in itertools.pairwise(dims)],
        likelihoods.Bernoulli(nets.MLP(LATENT, [5]), (1, 2, 2)),
        [conditionals.DiagonalNormal(nets.MLP(shape, [5]), dim) for shape, dim in zip(inputs, dims, strict=True)],
        inference=inference,
    )


def _bits() -> Tensor:
    return (torch.arange(28) % 5 < 2).float().reshape(7, 1, 2, 2)


Member = VAE | HierarchicalVAE | ConditionalVAE | SemiSupervisedVAE | TopDownVAE
PROGRAMS: dict[str, Callable[[], tuple[Member, tuple[Tensor, ...]]]] = {
    "VAE": lambda: (
        VAE(
            priors.StandardNormal(LATENT),
            likelihoods.Bernoulli(nets.MLP(LATENT, [5]), (1, 2, 2)),
            conditionals.DiagonalNormal(nets.MLP((1, 2, 2), [5]), LATENT),
        ),
        (_bits(),),
    ),
    "HierarchicalVAE, bottom-up": lambda: (_hierarchy("bottom-up"), (_bits(),)),
    "HierarchicalVAE, top-down": lambda: (_hierarchy("top-down"), (_bits(),)),
    "TopDownVAE": lambda: (
        TopDownVAE(likelihoods.Bernoulli(nets.ResidualMaps((4, 2, 2)), (1, 2, 2)), [1, 1], latent_channels=LATENT),
        (_bits(),),
    ),
    "ConditionalVAE": lambda: (
        ConditionalVAE(
            conditionals.DiagonalNormal(nets.MLP(3, [5]), LATENT),
            likelihoods.Bernoulli(nets.MLP(LATENT, [5], context_shapes=[3]), (1, 2, 2)),
            conditionals.DiagonalNormal(nets.MLP((1, 2, 2), [5], context_shapes=[3]), LATENT),
        ),
        (_bits(), torch.linspace(-1, 1, 21).reshape(7, 3)),
    ),
    "SemiSupervisedVAE": lambda: (
        SemiSupervisedVAE(
            priors.StandardNormal(LATENT),
            likelihoods.Bernoulli(nets.MLP(LATENT, [5], context_shapes=[3]), (1, 2, 2)),
            conditionals.DiagonalNormal(nets.MLP((1, 2, 2), [5], context_shapes=[3]), LATENT),
            conditionals.OneHotCategorical(nets.MLP((1, 2, 2), [5]), 3),
            classification_weight=1.0,
        ),
        (_bits(), torch.tensor([0, -1, 2, -1, -1, 1, -1])),
    ),
}
