"""One table over likelihoods x priors x guides: every row is the VAE of the row above with one line changed.

    python examples/choose_parts.py                                          # scikit-learn's digits, minutes
    python examples/choose_parts.py --dataset mnist --epochs 20 --guides diagonal-normal --priors standard real-nvp

-ELBO in nats per image, on validation data. Rows are grouped by the data they are densities of: log-densities compare
within a group, and not across groups, for bits, gray levels and reals in [0, 1] are three different data sets.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

import torch

from pyro_vae import VAE, conditionals, data, evaluation, fit, likelihoods, nets, priors

MakeLikelihood = Callable[[nets.Body, torch.Size, int], likelihoods.Likelihood]
MakePrior = Callable[[int, data.Dataset], priors.Prior]


def dequantized(family: Callable[..., likelihoods.Likelihood]) -> MakeLikelihood:
    """A density of reals as a probability of the levels 0, 1, ..., ``levels - 1`` over ``levels - 1``."""
    return lambda body, shape, levels: likelihoods.Dequantized(family(body, shape), levels=levels)


# What a group's figures are densities of, how its data are loaded, and its likelihoods.
GROUPS: dict[str, tuple[data.Binarize, dict[str, MakeLikelihood]]] = {
    "bits": (
        "dynamic",
        {"bernoulli": lambda body, shape, levels: likelihoods.Bernoulli(body, shape)},
    ),
    "gray levels, as probabilities": (
        "none",
        {
            "discretized-logistic": lambda body, shape, levels: likelihoods.DiscretizedLogistic(
                body, shape, levels=levels
            ),
            "categorical": lambda body, shape, levels: likelihoods.Categorical(
                levels, body, shape, spacing=1 / (levels - 1)
            ),
            "binomial": lambda body, shape, levels: likelihoods.Binomial(
                body, shape, total_count=levels - 1, spacing=1 / (levels - 1)
            ),
            "dequantized-normal": dequantized(likelihoods.Normal),
            "dequantized-laplace": dequantized(likelihoods.Laplace),
        },
    ),
    "gray values, as reals in [0, 1]": (
        "none",
        {
            "continuous-bernoulli": lambda body, shape, levels: likelihoods.ContinuousBernoulli(body, shape),
            "normal": lambda body, shape, levels: likelihoods.Normal(body, shape, min_scale=0.05),
        },
    ),
}

PRIORS: dict[str, MakePrior] = {
    "standard": lambda latent, train: priors.StandardNormal(latent),
    "mixture": lambda latent, train: priors.MixtureOfNormals(latent, num_components=10),
    "vamp": lambda latent, train: priors.VampPrior(pseudo_inputs=train.take(100).tensor()),
    "real-nvp": lambda latent, train: priors.RealNVP(latent),
}

GUIDES: dict[str, Callable[[nets.Body, int], conditionals.Conditional]] = {
    "diagonal-normal": conditionals.DiagonalNormal,
    "full-rank-normal": conditionals.FullRankNormal,
    "iaf": conditionals.InverseAutoregressiveFlow,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for _, members in GROUPS.values() for name in members]
    parser.add_argument("--dataset", choices=("digits", "mnist", "fashion_mnist", "kmnist"), default="digits")
    parser.add_argument("--likelihoods", nargs="+", choices=names, default=names)
    parser.add_argument("--priors", nargs="+", choices=PRIORS, default=list(PRIORS))
    parser.add_argument("--guides", nargs="+", choices=GUIDES, default=list(GUIDES))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--latent-size", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        for group, (binarize, members) in GROUPS.items():
            chosen = {name: make for name, make in members.items() if name in arguments.likelihoods}
            if chosen:
                print(f"\n{group}\n{'likelihood':22} {'prior':10} {'guide':18} {'-ELBO':>9} {'KL':>7}", flush=True)
                splits = data.load(arguments.dataset, binarize=binarize, seed=arguments.seed)
                for name, make in chosen.items():
                    print_rows(arguments, name, make, splits)
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f"error: {error}")


def print_rows(arguments: argparse.Namespace, name: str, make: MakeLikelihood, splits: data.Splits) -> None:
    """The rows of one likelihood."""
    for prior in arguments.priors:
        for guide in arguments.guides:
            try:
                vae = build(arguments, splits.train, make, PRIORS[prior], GUIDES[guide])
            except ValueError as error:  # a pair that cannot work is refused here, with what fits
                print(f"{name:22} {prior:10} {guide:18} {str(error).split(';')[0]}")
                continue
            train(arguments, splits.train, vae)
            terms = [evaluation.elbo_terms(vae, *batch, num_particles=8) for batch in splits.validation.batches(500)]
            bound = torch.cat([t.elbo for t in terms]).mean()
            kl = torch.cat([t.kl for t in terms]).mean()
            print(f"{name:22} {prior:10} {guide:18} {-bound:9.2f} {kl:7.2f}", flush=True)


def build(
    arguments: argparse.Namespace,
    train: data.Dataset,
    make_likelihood: MakeLikelihood,
    make_prior: MakePrior,
    make_guide: Callable[[nets.Body, int], conditionals.Conditional],
) -> VAE:
    """One VAE: three lines, each of which can be changed on its own."""
    shape, latent = train.event_shape, arguments.latent_size
    levels = 256 if train.levels is None else train.levels + 1
    torch.manual_seed(arguments.seed)
    return VAE(
        prior=make_prior(latent, train),
        likelihood=make_likelihood(nets.MLP(latent, [64]), shape, levels),
        posterior=make_guide(nets.MLP(shape, [64]), latent),
    )


def train(arguments: argparse.Namespace, dataset: data.Dataset, vae: VAE) -> None:
    optimizer = partial(torch.optim.Adam, lr=3e-3, fused=True)
    fit(vae, dataset, epochs=arguments.epochs, optimizer=optimizer, seed=arguments.seed, progress=False)


if __name__ == "__main__":
    main()
