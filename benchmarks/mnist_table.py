"""MNIST under other priors, guides, likelihoods and programs: equal networks, epochs and seeds, one changed line each.

    OMP_NUM_THREADS=1 PYRO_VAE_DATA=... python benchmarks/mnist_table.py --rows standard vamp real-nvp iaf
    OMP_NUM_THREADS=1 PYRO_VAE_DATA=... python benchmarks/mnist_table.py --rows standard bottom-up top-down --epochs 8

784-200-200-50 with tanh, Adam with a cosine schedule, 50,000 training images. -ELBO and its terms are of the 10,000
test images, one draw of z each; NLL is importance-weighted, of the first test images; all in nats per image. Active
units are those with Var_x(E_q[z_i|x]) > .01 over the first 500 training images. The last two rows have two stochastic
layers, 784-[200, 200]-100-[100, 100]-50.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_vae import (
    VAE,
    HierarchicalVAE,
    conditionals,
    data,
    elbo,
    evaluation,
    fit,
    likelihoods,
    nets,
    priors,
    schedules,
)

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


def two_layers(train: data.Dataset, inference: Literal["bottom-up", "top-down"]) -> HierarchicalVAE:
    lower = 100
    return HierarchicalVAE(
        priors.StandardNormal(LATENT),
        [conditionals.DiagonalNormal(nets.MLP(LATENT, [100, 100]), lower)],
        likelihoods.Bernoulli(nets.MLP(lower, [200, 200]), (1, 28, 28), data_mean=train.mean()),
        [
            conditionals.DiagonalNormal(encoder(), lower),
            # The upper layer sees a draw of the lower one, or, top-down, the features that it was inferred from.
            conditionals.DiagonalNormal(nets.MLP(lower if inference == "bottom-up" else 200, [100, 100]), LATENT),
        ],
        inference=inference,
    )


ROWS: dict[str, tuple[Callable[[], elbo.Estimator], Callable[[data.Dataset], VAE | HierarchicalVAE]]] = {
    "standard": (elbo.ELBO, build),
    "iwelbo-5": (partial(elbo.IWELBO, 5), build),
    "real-nvp": (elbo.ELBO, partial(build, prior=partial(priors.RealNVP, LATENT))),
    "iaf": (elbo.ELBO, partial(build, posterior=conditionals.InverseAutoregressiveFlow)),
    "vamp": (elbo.ELBO, vamp),
    "mixture": (elbo.ELBO, partial(build, prior=partial(priors.MixtureOfNormals, LATENT, num_components=20))),
    "bottom-up": (elbo.ELBO, partial(two_layers, inference="bottom-up")),
    "top-down": (elbo.ELBO, partial(two_layers, inference="top-down")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--beta-warmup", type=float, default=0.0, help="epochs in which beta rises from 0 to 1")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--nll-images", type=int, default=1000)
    parser.add_argument("--nll-particles", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train, validation, test = data.load("mnist", binarize="dynamic")
    print(
        f"{'':10} {'test -ELBO':>11} {'+- s.e.':>8} {'-E[log p(x|z)]':>15} {'KL':>7} {'NLL':>8} {'+- s.e.':>8} "
        f"{'active':>7} {'seconds':>8}",
        flush=True,
    )
    for row in arguments.rows:
        loss, make = ROWS[row]
        torch.manual_seed(arguments.seed)
        vae = make(train)
        start = time.perf_counter()
        fit(
            vae,
            train,
            validation=validation,
            loss=loss(),
            optimizer=partial(torch.optim.Adam, lr=arguments.learning_rate, fused=True),
            scheduler=partial(CosineAnnealingLR, T_max=arguments.epochs),
            epochs=arguments.epochs,
            beta=schedules.linear(0.0, 1.0, arguments.beta_warmup) if arguments.beta_warmup else None,
            seed=arguments.seed,
            progress=False,
        )
        seconds = time.perf_counter() - start
        terms = [evaluation.elbo_terms(vae, *batch) for batch in test.batches(1000)]
        bound = torch.cat([t.elbo for t in terms])
        likelihood = torch.cat([t.expected_log_likelihood for t in terms]).mean()
        kl = torch.cat([t.kl for t in terms]).mean()
        nll = -evaluation.log_marginal_likelihood(
            vae, *next(test.batches(arguments.nll_images)), num_particles=arguments.nll_particles, progress=False
        ).value
        (x,) = train.take(500).batch(torch.arange(500), torch.Generator().manual_seed(0))
        units = evaluation.active_units(vae, x, num_particles=100)
        active = sum(int(site.sum()) for site in units.active.values())
        print(
            f"{row:10} {-bound.mean():11.2f} {bound.std() / len(bound) ** 0.5:8.2f} {-likelihood:15.2f} {kl:7.2f} "
            f"{nll.mean():8.2f} {nll.std() / len(nll) ** 0.5:8.2f} {active:7} {seconds:8.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
