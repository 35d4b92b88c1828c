"""Importance sampling on MNIST with each proposal, against annealed importance sampling, on one trained model.

    OMP_NUM_THREADS=1 PYRO_VAE_DATA=... python benchmarks/proposals.py
    OMP_NUM_THREADS=1 PYRO_VAE_DATA=... python benchmarks/proposals.py --images 20 --epochs 1 --particles 500

784-200-200-50 with a diagonal Normal guide, trained on dynamic MNIST. NLL is -log p(x) in nats, averaged over the same
test images in every row, +- the standard error through the noise of the draws alone, since all rows share the images.
All rows are upper bounds of the NLL on average: the lowest is the best, unless k-hat says that its error is not to be
trusted. The last rows bound the NLL of images that the model made from both sides, which tells how far each annealing
is to be trusted. Seconds are those of the processor, on one thread.
"""

from __future__ import annotations

import argparse
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_vae
from pyro_vae import VAE, conditionals, data, evaluation, fit, likelihoods, nets, priors
from pyro_vae.evaluation import proposals

LATENT = 50

PROPOSALS: dict[str, proposals.Proposal | None] = {
    "guide": None,
    "defensive": proposals.Defensive(),
    "refined-diagonal": proposals.Refined(full_rank=False),
    "refined": proposals.Refined(),
}
CHAINS = ("ais-guide", "ais-prior", "bdmc-guide", "bdmc-prior")


def trained(epochs: int, seed: int, folder: Path | None) -> VAE:
    """The model, trained, or loaded from the folder where it was trained before."""
    if folder is not None and folder.exists():
        loaded: VAE = pyro_vae.load(folder)
        return loaded
    train, validation, _ = data.load("mnist", binarize="dynamic")
    torch.manual_seed(seed)
    vae = VAE(
        prior=priors.StandardNormal(LATENT),
        likelihood=likelihoods.Bernoulli(nets.MLP(LATENT, [200, 200]), (1, 28, 28), data_mean=train.mean()),
        posterior=conditionals.DiagonalNormal(nets.MLP((1, 28, 28), [200, 200]), LATENT),
    )
    fit(
        vae,
        train,
        validation=validation,
        optimizer=partial(torch.optim.Adam, lr=2e-3, fused=True),
        scheduler=partial(CosineAnnealingLR, T_max=epochs),
        epochs=epochs,
        seed=seed,
        folder=folder,
        progress=False,
    )
    return vae


def print_row(name: str, value: Tensor, error: Tensor, ess: Tensor, share: str, seconds: float) -> None:
    noise = error.square().sum().sqrt() / len(error)
    print(f"{name:16} {-value.mean():8.3f} {noise:7.3f} {share:>10} {ess.mean():9.3f} {seconds:8.1f}", flush=True)


def print_bounds(name: str, found: evaluation.BidirectionalMonteCarlo, seconds: float) -> None:
    bounds = found.estimates()
    print(
        f"{name:16} {-bounds['upper'].value:.3f} to {-bounds['lower'].value:.3f} for {bounds['gap'].num_data} images "
        f"of the model, gap {found.gap.value:.3f} +- {found.gap.standard_error:.3f}; {seconds:.1f} seconds",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=[*PROPOSALS, *CHAINS], default=[*PROPOSALS, *CHAINS])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--particles", type=int, default=2000)
    parser.add_argument("--chains", type=int, default=8)
    parser.add_argument("--prior-temperatures", type=int, default=500)
    parser.add_argument("--guide-temperatures", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--folder", type=Path, help="where the model is kept, and found again")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", "log_marginal_likelihood: expected Pareto")  # the table tells
    vae, n = trained(arguments.epochs, arguments.seed, arguments.folder), arguments.images
    test = data.load("mnist", binarize="dynamic").test
    (x,) = test.take(n).batch(torch.arange(n), torch.Generator().manual_seed(arguments.seed))
    temperatures = {"guide": arguments.guide_temperatures, "prior": arguments.prior_temperatures}
    k, chains = arguments.particles, arguments.chains
    print(f"{n} images, K = {k:,}; {chains} chains, T = {temperatures}; seed {arguments.seed}")
    print(f"{'':16} {'NLL':>8} {'+- s.e.':>7} {'k-hat > .7':>10} {'ESS / K':>9} {'seconds':>8}", flush=True)
    for row in arguments.rows:
        torch.manual_seed(arguments.seed)
        start = time.process_time()
        kind, _, origin = row.partition("-")
        if row in PROPOSALS:
            found = evaluation.log_marginal_likelihood(vae, x, num_particles=k, proposal=PROPOSALS[row], progress=False)
            seconds, share = time.process_time() - start, f"{len(found.unreliable) / n:.3f}"
            print_row(row, found.value, found.standard_error, found.effective_sample_size / k, share, seconds)
            continue
        options: dict[str, Any] = {"num_temperatures": temperatures[origin], "start": origin, "progress": False}
        if kind == "ais":
            annealed = evaluation.ais(vae, x, num_particles=chains, **options)
            ess, seconds = annealed.effective_sample_size / chains, time.process_time() - start
            print_row(row, annealed.value, annealed.standard_error, ess, "", seconds)
        else:
            simulation = evaluation.simulate(vae, x[:50])
            bounds = evaluation.bdmc(vae, simulation, num_particles=chains, **options)
            print_bounds(row, bounds, time.process_time() - start)


if __name__ == "__main__":
    main()
