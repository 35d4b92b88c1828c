"""Holes in a table filled: 30% of the values of scikit-learn's wine data are taken out, and drawn from what is left.

    python examples/impute_wine.py

A VAE with ``likelihoods.MissingAtRandom`` is trained on the table with its holes, by the importance-weighted ELBO
(MIWAE: Mattei, Frellsen, 2019), and ``evaluation.impute`` draws what is missing. Errors are root mean squares in
standard deviations of a column; column means, which are the guess of one who sees no other column, have about 1.
Training stops where the bound on rows that were set aside is best: of 178 rows a network learns the noise too, and its
intervals then are too narrow.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from sklearn.datasets import load_wine

from pyro_vae import VAE, conditionals, elbo, evaluation, fit, likelihoods, nets, priors


def vae_of(x: torch.Tensor) -> VAE:
    """A VAE of rows with holes, in the units of the data; the encoder is told what is missing."""
    columns, latent, standardize = x.shape[1], 4, nets.Standardize.of(x)
    normal = likelihoods.Normal(nets.MLP(latent, [64]), columns, min_scale=0.1)
    return VAE(
        priors.StandardNormal(latent),
        likelihoods.MissingAtRandom(likelihoods.Standardized(normal, standardize)),
        conditionals.DiagonalNormal(nets.MLP(columns, [64], transform=standardize, masked=True), latent),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--missing", type=float, default=0.3, help="share of the values to take out")
    parser.add_argument("--epochs", type=int, default=400, help="at most")
    parser.add_argument("--level", type=float, default=0.9, help="of the prediction intervals")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    wine = load_wine()
    complete = torch.tensor(wine.data, dtype=torch.float32)
    torch.manual_seed(arguments.seed)
    missing = torch.rand(complete.shape) < arguments.missing
    x = complete.masked_fill(missing, torch.nan)

    vae = vae_of(x)
    aside = torch.arange(len(x)) % 5 == 0
    how = {"epochs": arguments.epochs, "patience": 40, "batch_size": 32, "seed": arguments.seed, "progress": False}
    fit(vae, x[~aside], validation=x[aside], loss=elbo.IWELBO(num_particles=20), **how)
    imputation = evaluation.impute(vae, x, num_samples=199, num_particles=5000, progress=False)

    low, high = imputation.interval(arguments.level)
    covered = ((low <= complete) & (complete <= high))[missing].float()
    by_row = torch.zeros_like(complete).masked_scatter(missing, covered - covered.mean()).sum(1)
    error = by_row.std().item() * len(x) ** 0.5 / len(covered)  # values of a row depend on each other
    deviation = complete.std(0)
    own = ((imputation.mean - complete) / deviation).square()
    means = ((x.nanmean(0) - complete) / deviation).square()

    print(f"\n{'error, in standard deviations':30}{'imputed':>9}{'column mean':>13}{'missing':>9}")
    for i, name in enumerate(wine.feature_names):
        here = missing[:, i]
        print(f"{name:30}{own[here, i].mean().sqrt():9.2f}{means[here, i].mean().sqrt():13.2f}{int(here.sum()):9}")
    together = own[missing].mean().sqrt(), means[missing].mean().sqrt()
    print(f"{'all':30}{together[0]:9.2f}{together[1]:13.2f}{int(missing.sum()):9}")
    print(f"\nIntervals of level {arguments.level:g} hold {covered.mean():.3f} ± {error:.3f} of the values taken out.")
    print(f"Rows whose draws are not to be trusted: {len(imputation.unreliable)} of {len(x)}.")

    given = {"alcohol": float(np.quantile(wine.data[:, 0], 0.95)), "hue": 1.2}
    wines = evaluation.condition(vae, given, columns=wine.feature_names, num_samples=199, progress=False)
    color = wines.samples[:, 0, wine.feature_names.index("color_intensity")]
    print(f"Wines of {given['alcohol']:.1f}% and hue 1.2: color intensity {color.mean():.1f} ± {color.std():.1f}.")


if __name__ == "__main__":
    main()
