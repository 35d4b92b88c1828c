"""Time of a training step of every estimator, beside Pyro's own class where there is one.

    OMP_NUM_THREADS=1 python benchmarks/estimators.py
    python benchmarks/estimators.py --device cuda

A VAE of Bernoulli pixels (784-200-200-50, batch 100) is trained with fused Adam by stock ``pyro.infer.SVI``, so that
only the estimator differs: no compilation, and Pyro's validation is off for all. Contenders of one K take turns in
short blocks and ratios are of blocks that ran side by side, because the speed of a shared machine drifts; medians over
the blocks are printed. Each ratio is to the contender named beside it; on one thread it is of processor time.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.infer
import pyro.optim
import torch
from devices import description, device
from ratios import ratio, timed, write
from torch import Tensor

from pyro_vae import VAE, conditionals, elbo, likelihoods, nets, priors

LATENT, HIDDEN, PIXELS = 50, [200, 200], 784
Estimator = pyro.infer.ELBO

pyro_several: dict[str, Any] = {"max_plate_nesting": 1, "vectorize_particles": True}


def contenders(k: int) -> dict[str, tuple[Callable[[], Estimator], str]]:
    """Estimators of K draws, each with the name of what it is compared with."""
    table: dict[str, tuple[Callable[[], Estimator], str]] = {
        "ELBO": (lambda: elbo.ELBO(k), "Pyro Trace_ELBO"),
        "ELBO, analytic KL": (lambda: elbo.ELBO(k, analytic_kl=True), "Pyro TraceMeanField_ELBO"),
        "ELBO, stl": (lambda: elbo.ELBO(k, gradient="stl"), "ELBO"),
        "IWELBO": (lambda: elbo.IWELBO(k), "Pyro RenyiELBO(0)" if k > 1 else "ELBO"),
        "IWELBO, stl": (lambda: elbo.IWELBO(k, "stl"), "IWELBO"),
        "IWELBO, dreg": (lambda: elbo.IWELBO(k, "dreg"), "IWELBO"),
        "IWELBO, score": (lambda: elbo.IWELBO(k, "score"), "IWELBO"),
        "CIWELBO": (lambda: elbo.CIWELBO(k, beta=0.5), "IWELBO"),
        "PIWELBO": (lambda: elbo.PIWELBO(k // 5 or 1, num_bounds=1 if k == 1 else 5), "IWELBO"),
        "TVO, pathwise": (lambda: elbo.ThermodynamicELBO(k, partitions=5), "IWELBO"),
        "TVO, covariance": (lambda: elbo.ThermodynamicELBO(k, partitions=5, gradient="covariance"), "IWELBO, score"),
        "Pyro Trace_ELBO": (lambda: pyro.infer.Trace_ELBO(k, **pyro_several), "ELBO"),
        "Pyro TraceMeanField_ELBO": (lambda: pyro.infer.TraceMeanField_ELBO(k, **pyro_several), "ELBO, analytic KL"),
    }
    if k > 1:
        table |= {
            "MIWELBO": (lambda: elbo.MIWELBO(k // 5, num_bounds=5), "IWELBO"),
            "RenyiELBO(.5)": (lambda: elbo.RenyiELBO(k, alpha=0.5), "Pyro RenyiELBO(.5)"),
            "VRMax": (lambda: elbo.VRMax(k), "IWELBO"),
            "JackknifeELBO": (lambda: elbo.JackknifeELBO(k), "IWELBO"),
            "IWELBO, vimco": (lambda: elbo.IWELBO(k, "vimco"), "IWELBO, score"),
            "IWELBO, ovis": (lambda: elbo.IWELBO(k, "ovis"), "IWELBO, score"),
            "Wake-wake": (lambda: elbo.ReweightedWakeSleep(k), "Pyro ReweightedWakeSleep"),
            "Pyro RenyiELBO(0)": (lambda: pyro.infer.RenyiELBO(0.0, k, **pyro_several), "IWELBO"),
            "Pyro RenyiELBO(.5)": (lambda: pyro.infer.RenyiELBO(0.5, k, **pyro_several), "RenyiELBO(.5)"),
            "Pyro ReweightedWakeSleep": (
                lambda: pyro.infer.ReweightedWakeSleep(k, **pyro_several),
                "Wake-wake",
            ),
        }
    return table


def stepper(estimator: Estimator, x: Tensor) -> Callable[[], object]:
    vae = VAE(
        prior=priors.StandardNormal(LATENT),
        likelihood=likelihoods.Bernoulli(nets.MLP(LATENT, HIDDEN), (PIXELS,)),
        posterior=conditionals.DiagonalNormal(nets.MLP((PIXELS,), HIDDEN), LATENT),
    )
    vae.to(x.device)
    optimizer = pyro.optim.PyroOptim(torch.optim.Adam, {"lr": 1e-3, "fused": True})
    return partial(pyro.infer.SVI(vae.model, vae.guide, optimizer, estimator).step, x)


def block(step: Callable[[], object], steps: int, on: torch.device) -> tuple[float, float]:
    """Milliseconds per step: elapsed, and those that ratios are of."""
    elapsed, compared = timed(lambda: [step() for _ in range(steps)], on)
    return elapsed / steps, compared / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, nargs="+", default=[1, 5, 50])
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--device", type=device, default="cpu", help="cpu, cuda or cuda:1, for example")
    parser.add_argument("--json", type=Path, metavar="PATH", help="file for the ratios")
    parser.add_argument("--only", nargs="+", metavar="WORD", default=[], help="contenders whose name has one of these")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    x = torch.rand(arguments.batch_size, PIXELS).round().to(arguments.device)
    print(
        f"784-200-200-50, batch {arguments.batch_size}, {arguments.blocks} blocks, "
        f"{description(x.device)}, Pyro {pyro.__version__}"
    )
    rows: dict[str, dict[str, float]] = {}
    for k in arguments.particles:
        table = {
            name: entry
            for name, entry in contenders(k).items()
            if not arguments.only or any(word in name for word in arguments.only)
        }
        steps = {name: stepper(make(), x) for name, (make, _) in table.items()}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
        with warnings.catch_warnings(), pyro.validation_enabled(False):
            warnings.simplefilter("ignore")  # Pyro's estimators give advice
            for step in steps.values():
                block(step, 3, x.device)  # warm up
            for _ in range(arguments.blocks):
                for name, step in steps.items():
                    times[name].append(block(step, 5 if k < 50 else 1, x.device))
        print(f"\nK = {k:<20} {'ms/step':>8} {'min':>8}   ratio to: median (standard error)")
        for name, values in times.items():
            elapsed, compared = zip(*values, strict=True)
            line = f"{name:24} {statistics.median(elapsed):8.2f} {min(elapsed):8.2f}"
            against = table[name][1]
            if against in times:
                found = ratio(compared, [theirs for _, theirs in times[against]])
                line += f"   {against}: {found['ratio']:.3f} ({found['error']:.3f})"
                if not name.startswith("Pyro"):
                    rows[f"{name} / {against}, K = {k}"] = found
            print(line)
    write(arguments.json, x.device, {"batch_size": arguments.batch_size, "blocks": arguments.blocks}, rows)


if __name__ == "__main__":
    main()
