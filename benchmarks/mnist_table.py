"""MNIST under other priors, guides, likelihoods and programs: equal networks, epochs and seeds, one changed line each.

    OMP_NUM_THREADS=1 PYRO_VAE_DATA=... python benchmarks/mnist_table.py --rows bernoulli vamp real-nvp iaf

784-200-200-50 with tanh, Adam with a cosine schedule, 50,000 training images; figures are of the 10,000 test images, in
nats per image, one draw of z per image.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_vae import VAE, conditionals, data, evaluation, fit, likelihoods, nets, priors

LATENT = 50


def encoder() -> nets.MLP:
    return nets.MLP((1, 28, 28), [200, 200])


def bernoulli(train: data.Dataset) -> likelihoods.Likelihood:
    return likelihoods.Bernoulli(nets.MLP(LATENT, [200, 200]), (1, 28, 28), data_mean=train.mean())


def build(
    train: data.Dataset,
    prior: Callable[[], priors.Prior] = lambda: priors.StandardNormal(LATENT),
    posterior: Callable[..., conditionals.Conditional] = conditionals.DiagonalNormal,
    likelihood: Callable[[data.Dataset], likelihoods.Likelihood] = bernoulli,
) -> VAE:
    return VAE(prior=prior(), likelihood=likelihood(train), posterior=posterior(encoder(), LATENT))


def vamp(train: data.Dataset) -> VAE:
    return build(train, partial(priors.VampPrior, pseudo_inputs=train.images[:500]))


ROWS: dict[str, tuple[data.Binarize, Callable[[data.Dataset], VAE]]] = {
    "bernoulli": ("dynamic", build),
    "mixture": ("dynamic", partial(build, prior=partial(priors.MixtureOfNormals, LATENT, num_components=20))),
    "vamp": ("dynamic", vamp),
    "real-nvp": ("dynamic", partial(build, prior=partial(priors.RealNVP, LATENT))),
    "iaf": ("dynamic", partial(build, posterior=conditionals.InverseAutoregressiveFlow)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"{'':12} {'test -ELBO':>11} {'+- s.e.':>8} {'-E[log p(x|z)]':>15} {'KL':>7} {'seconds':>8}", flush=True)
    for row in arguments.rows:
        binarize, make = ROWS[row]
        train, valid, test = data.load("mnist", binarize=binarize)
        torch.manual_seed(arguments.seed)
        vae = make(train)
        start = time.perf_counter()
        fit(
            vae,
            train,
            validation=valid,
            optimizer=partial(torch.optim.Adam, lr=arguments.learning_rate, fused=True),
            scheduler=partial(CosineAnnealingLR, T_max=arguments.epochs),
            epochs=arguments.epochs,
            seed=arguments.seed,
            progress=False,
        )
        seconds = time.perf_counter() - start
        terms = [evaluation.elbo_terms(vae, *batch) for batch in test.batches(1000)]
        bound = torch.cat([t.elbo for t in terms])
        likelihood = torch.cat([t.expected_log_likelihood for t in terms]).mean()
        kl = torch.cat([t.kl for t in terms]).mean()
        print(
            f"{row:12} {-bound.mean():11.2f} {bound.std() / len(bound) ** 0.5:8.2f} {-likelihood:15.2f} {kl:7.2f} "
            f"{seconds:8.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
