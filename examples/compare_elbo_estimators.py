"""Compares gradient estimators of the ELBO and of importance-weighted bounds: where the truth is known, then on images.

    python examples/compare_elbo_estimators.py --dataset digits   # MNIST, if it can be had, when left out

It says what it finds, and leaves tables as text, JSON and CSV, and figures, in the folder of --out.
"""

import argparse
import copy
import math
import sys
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import RenyiELBO, Trace_ELBO

from pyro_vae import VAE, conditionals, data, elbo, fit, lab, likelihoods, nets, priors


def model(x: torch.Tensor) -> None:  # the posterior at x = 1 is a Normal of mean 1/2 and variance 1/2
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(loc: float, variance: float, x: torch.Tensor) -> None:
    mean = pyro.param("loc", lambda: torch.tensor(loc))
    log_scale = pyro.param("log_scale", lambda: torch.tensor(math.log(variance) / 2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(mean, log_scale.exp()))


def images(out: Path, splits: data.Splits, draws: int, steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    train, held_out, shape = splits.train, splits.validation.take(500), splits.train.event_shape
    vae = VAE(
        prior=priors.StandardNormal(16),
        likelihood=likelihoods.Bernoulli(nets.MLP(16, [64]), shape, data_mean=train.mean()),
        posterior=conditionals.DiagonalNormal(nets.MLP(shape, [64]), 16),
    )
    runners = {"ELBO": elbo.ELBO(), "IWAE, K=16": elbo.IWELBO(16), "IWAE, dreg, K=16": elbo.IWELBO(16, "dreg")}
    race = lab.race(vae, train, held_out, runners, optimizer=partial(torch.optim.Adam, lr=2e-3), steps=steps, seed=seed)
    show(f"{train.name}: the same weights and batches, {steps} steps under each", race, out / "race")
    trained = {"ELBO": vae, "IWAE, dreg, K=16": copy.deepcopy(vae)}
    for name, program in trained.items():
        fit(program, train, loss=runners[name], steps=steps, batch_size=100, progress=False)
    (x,) = next(splits.validation.batches(10))
    ours = [elbo.IWELBO(k, gradient) for gradient in ("pathwise", "dreg") for k in (1, 4, 16)]
    pyros = [Trace_ELBO(), RenyiELBO(0.0, num_particles=16, vectorize_particles=True, max_plate_nesting=1)]
    found = lab.compare(vae.model, vae.guide, x, [*ours, *pyros], draws=draws, seed=seed)
    show(f"{train.name}: gradients of 10 images; with K = 1, IWELBO is the ELBO", found, out / "images")
    ranking = lab.rank(trained, splits.test.take(1000), progress=False)
    show(f"{train.name}: which bound trained the better model?", ranking, out / "rank")


def show(title: str, found: lab.Comparison | lab.Race | lab.Ranking, path: Path) -> None:
    print(f"\n{title}\n\n{found}")
    path.with_suffix(".json").write_text(found.to_json())
    if isinstance(found, lab.Comparison):
        print("", *(f"- {line}" for line in found.telling()), sep="\n")
        path.with_suffix(".csv").write_text(found.to_csv())
        for kind in ("snr", "cost") if path.name != "optimum" else ():  # where no gradient has a signal to draw
            getattr(found, f"{kind}_figure")().savefig(f"{path}_{kind}.png", dpi=150)
    else:
        found.figure().savefig(path.with_suffix(".png"), dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=("auto", "mnist", "digits"), default="auto")
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST/raw, if not that of PYRO_VAE_DATA")
    for flag, number in (("--draws", 300), ("--steps", 400), ("--seed", 0)):  # draws of a gradient, steps of the race
        parser.add_argument(flag, type=int, default=number)
    parser.add_argument("--out", type=Path, default=Path("runs/compare_elbo_estimators"))
    arguments = parser.parse_args()
    out, seed, name = arguments.out, arguments.seed, arguments.dataset.replace("auto", "mnist")
    try:
        out.mkdir(parents=True, exist_ok=True)
        splits = data.load(name, arguments.data_dir, binarize="dynamic", seed=seed)
    except data.DatasetNotFoundError as error:
        if arguments.dataset != "auto":
            sys.exit(f"error: {error}")
        print(f"NO MNIST: using scikit-learn's 1,797 digits of 8x8 pixels instead.\n({error})", file=sys.stderr)
        splits = data.load("digits", binarize="dynamic", seed=seed)
    except OSError as error:
        sys.exit(f"error: --out: expected a folder one can write to; got {out} ({error}). Name another.")
    compare = partial(lab.compare, model, seed=seed, draws=5000, log_marginal_likelihood=torch.tensor([-1.5155121]))
    several = [elbo.IWELBO(k, gradient) for gradient in ("pathwise", "stl", "dreg") for k in (1, 4, 16, 64)]
    show("Guide Normal(1, 2/3), off", compare(partial(guide, 1.0, 2 / 3), torch.ones(1), several), out / "off")
    both = [elbo.ELBO(), elbo.ELBO(analytic_kl=True), elbo.ELBO(1, "stl"), elbo.IWELBO(16), elbo.IWELBO(16, "dreg")]
    show("The posterior as guide", compare(partial(guide, 0.5, 0.5), torch.ones(1), both), out / "optimum")
    images(out, splits, arguments.draws, arguments.steps, seed)


if __name__ == "__main__":
    main()
