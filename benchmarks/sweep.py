"""Which learning rate and network the first run takes: trains `examples/mnist_svi.py`'s VAE over a grid.

    python benchmarks/sweep.py                                 # digits, 3,000 steps each: minutes
    python benchmarks/sweep.py --dataset mnist --steps 4000    # MNIST: an hour or so

Chosen on the validation -ELBO; the test's is beside it. Bits are binarized dynamically, Adam with a cosine schedule.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from functools import partial

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_vae import VAE, conditionals, data, evaluation, fit, likelihoods, nets, priors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3])
    parser.add_argument("--widths", type=int, nargs="+", default=[200, 400])
    parser.add_argument("--latent-sizes", type=int, nargs="+", default=[10, 20, 50])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train, validation, test = data.load(arguments.dataset, binarize="dynamic", seed=arguments.seed)
    print("lr       width  latent   valid -ELBO   test -ELBO      KL   seconds")
    rows = []
    grid = itertools.product(arguments.learning_rates, arguments.widths, arguments.latent_sizes)
    for rate, width, latent in grid:
        start = time.perf_counter()
        vae = train_one(train, arguments.steps, rate, width, latent, arguments.seed)
        terms = [
            evaluation.elbo_terms(vae, *next(part.batches(len(part))), num_particles=10) for part in (validation, test)
        ]
        figures = [-terms[0].elbo.mean().item(), -terms[1].elbo.mean().item(), terms[1].kl.mean().item()]
        rows.append((figures[0], rate, width, latent))
        cells = f"{figures[0]:13.2f} {figures[1]:12.2f} {figures[2]:7.2f} {time.perf_counter() - start:9.1f}"
        print(f"{rate:<8g} {width:5d} {latent:7d} {cells}", flush=True)
    _, rate, width, latent = min(rows)
    print(f"best on validation data: learning rate {rate:g}, width {width}, {latent} latents")


def train_one(train: data.Dataset, steps: int, rate: float, width: int, latent: int, seed: int) -> VAE:
    torch.manual_seed(seed)
    shape = train.event_shape
    vae = VAE(
        prior=priors.StandardNormal(latent),
        likelihood=likelihoods.Bernoulli(nets.MLP(latent, [width, width]), shape, data_mean=train.mean()),
        posterior=conditionals.DiagonalNormal(nets.MLP(shape, [width, width]), latent),
    )
    fit(
        vae,
        train,
        optimizer=partial(torch.optim.Adam, lr=rate, fused=True),
        scheduler=partial(CosineAnnealingLR, T_max=math.ceil(steps / math.ceil(len(train) / 128))),
        steps=steps,
        seed=seed,
        progress=False,
    )
    return vae


if __name__ == "__main__":
    main()
