"""One table over likelihoods x priors x guides: every row is the VAE of the row above with one line changed.

    python examples/choose_parts.py                                          # scikit-learn's digits, minutes
    python examples/choose_parts.py --dataset mnist --epochs 20 --guides diagonal-normal --priors standard real-nvp

-ELBO in nats per image, on validation data. Rows are grouped by the data they are densities of: log-densities compare
within a group, and not across groups, for bits, gray levels and reals in [0, 1] are three different data sets.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from functools import partial

import torch

from pyro_vae import VAE, conditionals, data, evaluation, fit, likelihoods, nets, priors

Members = dict[str, Callable[..., likelihoods.Likelihood]]  # of a body, a shape and n, for the n + 1 levels k / n

GROUPS: dict[str, Members] = {  # by what their figures are densities of
    "bits": {"bernoulli": lambda body, shape, n: likelihoods.Bernoulli(body, shape)},
    "gray levels, as probabilities": {
        "discretized-logistic": lambda body, shape, n: likelihoods.DiscretizedLogistic(body, shape, levels=n + 1),
        "categorical": lambda body, shape, n: likelihoods.Categorical(n + 1, body, shape, spacing=1 / n),
        "binomial": lambda body, shape, n: likelihoods.Binomial(body, shape, total_count=n),
        "dequantized-normal": lambda body, shape, n: likelihoods.Dequantized(
            likelihoods.Normal(body, shape), levels=n + 1
        ),
        "dequantized-laplace": lambda body, shape, n: likelihoods.Dequantized(
            likelihoods.Laplace(body, shape), levels=n + 1
        ),
    },
    "gray values, as reals in [0, 1]": {
        "continuous-bernoulli": lambda body, shape, n: likelihoods.ContinuousBernoulli(body, shape),
        "normal": lambda body, shape, n: likelihoods.Normal(body, shape, min_scale=0.05),
    },
}
PRIORS: dict[str, Callable[..., priors.Prior]] = {
    "standard": lambda latent, train: priors.StandardNormal(latent),
    "mixture": lambda latent, train: priors.MixtureOfNormals(latent, num_components=10),
    "vamp": lambda latent, train: priors.VampPrior(pseudo_inputs=train.take(100).tensor()),
    "real-nvp": lambda latent, train: priors.RealNVP(latent),
}
GUIDES: dict[str, Callable[..., conditionals.Conditional]] = {
    "diagonal-normal": conditionals.DiagonalNormal,
    "full-rank-normal": conditionals.FullRankNormal,
    "iaf": conditionals.InverseAutoregressiveFlow,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for members in GROUPS.values() for name in members]
    parser.add_argument("--dataset", choices=("digits", "mnist", "fashion_mnist", "kmnist"), default="digits")
    parser.add_argument("--likelihoods", nargs="+", choices=names, default=names)
    parser.add_argument("--priors", nargs="+", choices=PRIORS, default=list(PRIORS))
    parser.add_argument("--guides", nargs="+", choices=GUIDES, default=list(GUIDES))
    for flag, number in (("--epochs", 10), ("--latent-size", 10), ("--seed", 0)):
        parser.add_argument(flag, type=int, default=number)
    arguments = parser.parse_args()
    try:
        for group, members in GROUPS.items():
            if chosen := [name for name in members if name in arguments.likelihoods]:
                print(f"\n{group}\n{'likelihood':22} {'prior':10} {'guide':18} {'-ELBO':>9} {'KL':>7}", flush=True)
                binarize: data.Binarize = "dynamic" if group == "bits" else "none"
                splits = data.load(arguments.dataset, binarize=binarize, seed=arguments.seed)
                for row in itertools.product(chosen, arguments.priors, arguments.guides):
                    print("{:22} {:10} {:18} ".format(*row) + figures(arguments, splits, members, *row), flush=True)
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f"error: {error}")


def figures(
    arguments: argparse.Namespace, splits: data.Splits, members: Members, likelihood: str, prior: str, guide: str
) -> str:
    """The figures of one VAE, of three lines, each of which can be changed on its own."""
    train, latent, shape = splits.train, arguments.latent_size, splits.train.event_shape
    torch.manual_seed(arguments.seed)
    try:
        vae = VAE(
            prior=PRIORS[prior](latent, train),
            likelihood=members[likelihood](nets.MLP(latent, [64]), shape, train.levels or 255),
            posterior=GUIDES[guide](nets.MLP(shape, [64]), latent),
        )
    except ValueError as error:  # a pair that cannot work is refused here, with what fits
        return str(error).split(";")[0]
    optimizer = partial(torch.optim.Adam, lr=3e-3, fused=True)
    fit(vae, train, epochs=arguments.epochs, optimizer=optimizer, seed=arguments.seed, progress=False)
    terms = [evaluation.elbo_terms(vae, *batch, num_particles=8) for batch in splits.validation.batches(500)]
    return f"{-torch.cat([t.elbo for t in terms]).mean():9.2f} {torch.cat([t.kl for t in terms]).mean():7.2f}"


if __name__ == "__main__":
    main()
