"""Importance sampling on MNIST with each proposal, against annealed importance sampling, on one trained model.

    OMP_NUM_THREADS=1 PYRO_VAE_DATA=... python benchmarks/proposals.py
    OMP_NUM_THREADS=1 PYRO_VAE_DATA=... python benchmarks/proposals.py --images 20 --epochs 1 --particles 500
    python benchmarks/proposals.py --folder runs/proposals --json benchmarks/results/proposals.json  # keeps the rows

784-200-200-50 with a diagonal Normal guide, trained on dynamic MNIST. NLL is -log p(x) in nats, averaged over the same
test images in every row, +- the standard error through the noise of the draws alone, since all rows share the images.
All rows are upper bounds of the NLL on average: the lowest is the best, unless k-hat says that its error is not to be
trusted. The last rows bound the NLL of images that the model made, a quarter as many, from both sides, which tells how
far each annealing is to be trusted. Seconds are those of the processor, on one thread.
"""

from __future__ import annotations

import argparse
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import records
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_vae import VAE, conditionals, data, evaluation, fit, likelihoods, nets, priors
from pyro_vae.coding.frozen import fingerprint
from pyro_vae.evaluation import proposals

RESULTS = records.FOLDER / "proposals.json"
LATENT = 50

PROPOSALS: dict[str, proposals.Proposal | None] = {
    "guide": None,
    "defensive": proposals.Defensive(),
    "refined-diagonal": proposals.Refined(full_rank=False),
    "refined": proposals.Refined(),
}
CHAINS = ("ais-guide", "ais-prior", "bdmc-guide", "bdmc-prior")


def trained(epochs: int, seed: int, folder: Path | None) -> VAE:
    """The model, trained, of which what was done before is taken from a folder."""
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
        resume=folder is not None,
        progress=False,
    )
    return vae


def measure(vae: VAE, x: torch.Tensor, row: str, settings: argparse.Namespace) -> dict[str, Any]:
    """Settings and figures of a row, in nats per image."""
    torch.manual_seed(settings.seed)
    start = time.process_time()
    if row in PROPOSALS:
        k = settings.particles
        found = evaluation.log_marginal_likelihood(vae, x, num_particles=k, proposal=PROPOSALS[row], progress=False)
        nll, noise, ess = -found.value, found.standard_error, found.effective_sample_size / k
        figures = {"particles": k, "k-hat above .7": len(found.unreliable) / len(x)}
    else:
        kind, _, origin = row.partition("-")
        temperatures = getattr(settings, f"{origin}_temperatures")
        options: Any = {"num_particles": settings.chains, "num_temperatures": temperatures, "start": origin}
        figures = {"chains": settings.chains, "temperatures": temperatures}
        if kind == "bdmc":
            simulation = evaluation.simulate(vae, x[: -(-len(x) // 4)])
            bounds = evaluation.bdmc(vae, simulation, progress=False, **options).estimates()
            enclosed = {"NLL, at least": -bounds["upper"].value, "NLL, at most": -bounds["lower"].value}
            gap = {"gap": bounds["gap"].value, "gap error": bounds["gap"].standard_error}
            made = {"images of the model": bounds["gap"].num_data}
            return figures | made | enclosed | gap | {"seconds": time.process_time() - start}
        annealed = evaluation.ais(vae, x, progress=False, **options)
        nll, noise = -annealed.value, annealed.standard_error
        ess = annealed.effective_sample_size / settings.chains
    error = float(noise.square().sum().sqrt()) / len(x)
    figures |= {"NLL": float(nll.mean()), "NLL error": error, "ESS share": float(ess.mean())}
    return figures | {"seconds": time.process_time() - start}


COLUMNS = ["proposal", "draws", "NLL, nats", "k-hat > .7", "ESS / K", "seconds"]


def cells(row: str, its: dict[str, Any]) -> list[str]:
    """A line of the table."""
    draws = f"K = {its['particles']:,}" if "particles" in its else f"{its['chains']} chains, T = {its['temperatures']}"
    if "gap" in its:
        bounds = (
            f"{its['NLL, at least']:.3f} to {its['NLL, at most']:.3f}, gap {its['gap']:.3f} ± {its['gap error']:.3f}"
        )
        return [
            row,
            draws,
            f"{bounds}, of {its['images of the model']} simulated images",
            "",
            "",
            f"{its['seconds']:.0f}",
        ]
    share = f"{its['k-hat above .7']:.1%}" if "particles" in its else ""
    nll = f"{its['NLL']:.3f} ± {its['NLL error']:.3f}"
    return [row, draws, nll, share, f"{its['ESS share']:.3f}", f"{its['seconds']:.0f}"]


def table(path: Path = RESULTS) -> str:
    """The rows that have been run, as Markdown."""
    found = records.read(path)
    return records.markdown(COLUMNS, [cells(row, found[row]) for row in (*PROPOSALS, *CHAINS) if row in found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=[*PROPOSALS, *CHAINS], default=[*PROPOSALS, *CHAINS])
    parser.add_argument("--images", type=int, default=200, help="of the test images; 200")
    parser.add_argument("--particles", type=int, default=2000, help="K, draws per image of a proposal; 2000")
    parser.add_argument("--chains", type=int, default=8, help="per image, of AIS and BDMC; 8")
    parser.add_argument("--prior-temperatures", type=int, default=500, help="T of ais-prior and bdmc-prior; 500")
    parser.add_argument("--guide-temperatures", type=int, default=50, help="T of ais-guide and bdmc-guide; 50")
    parser.add_argument("--epochs", type=int, default=12, help="of training; 12")
    parser.add_argument("--folder", type=Path, help="where the model is kept, and found again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the rows, in which others of the model and images stay")
    settings = parser.parse_args()
    warnings.filterwarnings("ignore", "log_marginal_likelihood: expected Pareto")  # the table tells
    vae = trained(settings.epochs, settings.seed, settings.folder)
    test = data.load("mnist", binarize="dynamic").test
    (x,) = test.take(settings.images).batch(torch.arange(settings.images), torch.Generator().manual_seed(settings.seed))
    shared = {"model": fingerprint(vae).hex(), "epochs": settings.epochs, "images": len(x), "seed": settings.seed}
    print(f"{shared}\n{records.markdown(COLUMNS, [])}", flush=True)
    for row in settings.rows:
        found = measure(vae, x, row, settings)
        print(records.line(cells(row, found)), flush=True)
        records.keep(settings.json, row, shared | found, tuple(shared))


if __name__ == "__main__":
    main()
