"""Which likelihood do counts have? Four of them on the digits of scikit-learn, whose pixels count ink from 0 to 16.

    python examples/digits_as_counts.py

A Poisson's variance is its mean, a NegativeBinomial's is larger; a Binomial knows that no pixel exceeds 16, and
zero inflation that the margins are empty. All are probabilities of the same whole numbers, so that their figures
compare: ``lab.rank`` says which wins by how much over seeds and test data, or that it cannot tell.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from functools import partial

import torch
from sklearn.datasets import load_digits

from pyro_vae import VAE, conditionals, data, fit, lab, likelihoods, nets, priors

LIKELIHOODS: dict[str, Callable[[nets.Body, int], likelihoods.Likelihood]] = {
    "Poisson": likelihoods.Poisson,
    "NegativeBinomial": likelihoods.NegativeBinomial,
    "ZeroInflatedPoisson": likelihoods.ZeroInflatedPoisson,
    "Binomial of 16": partial(likelihoods.Binomial, total_count=16, spacing=1.0),
}


def vae_of(name: str, latent: int = 8) -> VAE:
    """A VAE of 64 counts, of which the encoder is given the logarithms."""
    return VAE(
        prior=priors.StandardNormal(latent),
        likelihood=LIKELIHOODS[name](nets.MLP(latent, [64]), 64),
        posterior=conditionals.DiagonalNormal(nets.MLP(64, [64], transform="log1p"), latent),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=4)
    arguments = parser.parse_args()

    train, validation, test = data.load(torch.tensor(load_digits().data, dtype=torch.float32))
    trained: dict[str, list[VAE]] = {}
    for name in LIKELIHOODS:
        for seed in range(arguments.seeds):
            torch.manual_seed(seed)
            vae = vae_of(name)
            how = {"epochs": arguments.epochs, "patience": 10, "seed": seed, "progress": False}
            history = fit(vae, train, validation, optimizer=partial(torch.optim.Adam, lr=5e-3), **how)
            print(f"{name:20} seed {seed}: validation ELBO {max(history['validation_elbo']):.1f} nats", flush=True)
            trained.setdefault(name, []).append(vae)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unreliable weights, which the ranking tells itself
        ranking = lab.rank(trained, test, of="elbo", progress=False)
    print(f"\n{ranking}")


if __name__ == "__main__":
    main()
