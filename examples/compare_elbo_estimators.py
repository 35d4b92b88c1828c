"""Compares gradient estimators of the ELBO and of importance-weighted bounds: where the truth is known, then on images.

    python examples/compare_elbo_estimators.py                    # MNIST if it can be had, else scikit-learn's digits
    python examples/compare_elbo_estimators.py --dataset digits --draws 200 --steps 100

It says what it finds, and leaves tables as text, JSON and CSV, and figures, in the folder of --out.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import RenyiELBO, ReweightedWakeSleep, Trace_ELBO
from torch import Tensor

from pyro_vae import VAE, conditionals, data, elbo, fit, lab, likelihoods, nets, priors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=("auto", "mnist", "digits"), default="auto")
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST/raw, if not that of PYRO_VAE_DATA")
    parser.add_argument("--draws", type=int, default=300, help="of each estimator's gradient on images")
    parser.add_argument("--steps", type=int, default=400, help="of each estimator in the race")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/compare_elbo_estimators"))
    arguments = parser.parse_args()
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"error: --out: expected a folder one can write to; got {arguments.out} ({error}). Name another.")
    try:
        splits = load(arguments)
        closed_form(arguments)
        images(arguments, splits)
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f"error: {error}")


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(loc: float, variance: float, x: Tensor) -> None:
    mean = pyro.param("loc", lambda: torch.tensor(loc))
    log_scale = pyro.param("log_scale", lambda: torch.tensor(math.log(variance) / 2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(mean, log_scale.exp()))


def closed_form(arguments: argparse.Namespace) -> None:
    """z ~ Normal(0, 1), x|z ~ Normal(z, 1), and x = 1, whose posterior is a Normal of mean 1/2 and variance 1/2."""
    x = torch.ones(1)
    options: dict[str, Any] = {"log_marginal_likelihood": dist.Normal(0.0, math.sqrt(2)).log_prob(x), "draws": 5000}
    several = [elbo.IWELBO(k, gradient) for gradient in ("pathwise", "stl", "dreg") for k in (1, 4, 16, 64)]
    found = lab.compare(model, partial(guide, 1.0, 2 / 3), x, several, seed=arguments.seed, **options)
    show("A guide that is off, of mean 1 and variance 2/3", found, arguments.out / "off")
    single = [elbo.ELBO(), elbo.ELBO(analytic_kl=True), elbo.ELBO(gradient="stl"), Trace_ELBO()]
    both = [*single, elbo.IWELBO(16), elbo.IWELBO(16, "dreg")]
    found = lab.compare(model, partial(guide, 1 / 2, 1 / 2), x, both, seed=arguments.seed, **options)
    show("A guide that is the posterior", found, arguments.out / "optimum")


def images(arguments: argparse.Namespace, splits: data.Splits) -> None:
    """A small VAE of bits: raced from the same weights, compared where the ELBO leads, and ranked on test data."""
    train, held_out = splits.train, splits.validation.take(500)
    torch.manual_seed(arguments.seed)
    vae = VAE(
        prior=priors.StandardNormal(16),
        likelihood=likelihoods.Bernoulli(nets.MLP(16, [64]), train.event_shape, data_mean=train.mean()),
        posterior=conditionals.DiagonalNormal(nets.MLP(train.event_shape, [64]), 16),
    )
    runners = {"ELBO": elbo.ELBO(), "IWAE, K=16": elbo.IWELBO(16), "IWAE, dreg, K=16": elbo.IWELBO(16, "dreg")}
    adam = partial(torch.optim.Adam, lr=2e-3, fused=True)
    race = lab.race(vae, train, held_out, runners, optimizer=adam, steps=arguments.steps, seed=arguments.seed)
    print(f"\n{train.name}: the same weights and batches, {arguments.steps} steps under each\n\n{race}")
    (arguments.out / "race.json").write_text(race.to_json())
    race.figure().savefig(arguments.out / "race.png", dpi=150)
    trained = {"ELBO": vae, "IWAE, dreg, K=16": copy.deepcopy(vae)}
    epochs = math.ceil(arguments.steps * 100 / len(train))
    for name, program in trained.items():
        fit(program, train, loss=runners[name], epochs=epochs, batch_size=100, progress=False)
    (x,) = next(train.batches(10, generator=torch.Generator().manual_seed(arguments.seed)))
    stock: dict[str, Any] = {"num_particles": 16, "vectorize_particles": True, "max_plate_nesting": 1}
    ours = [elbo.IWELBO(k, gradient) for gradient in ("pathwise", "dreg") for k in (1, 4, 16)]
    pyros = [Trace_ELBO(), RenyiELBO(alpha=0.0, **stock), ReweightedWakeSleep(**stock)]
    found = lab.compare(vae.model, vae.guide, x, [*ours, *pyros], draws=arguments.draws, seed=arguments.seed)
    show(f"{train.name}: gradients of 10 images; with K = 1, IWELBO is the ELBO", found, arguments.out / "images")

    ranking = lab.rank(trained, splits.test.take(1000), seed=arguments.seed, progress=False)
    print(f"\n{train.name}: which of the two bounds trained the better model of test data?\n\n{ranking}")
    (arguments.out / "rank.json").write_text(ranking.to_json())
    ranking.figure().savefig(arguments.out / "rank.png", dpi=150)


def load(arguments: argparse.Namespace) -> data.Splits:
    """The data set of the flags; ``auto`` falls back, loudly, on the digits that come with scikit-learn."""
    name = "mnist" if arguments.dataset == "auto" else arguments.dataset
    try:
        return data.load(name, arguments.data_dir, binarize="dynamic", seed=arguments.seed)
    except data.DatasetNotFoundError as error:
        if arguments.dataset != "auto":
            raise
        print(f"NO MNIST: using scikit-learn's 1,797 digits of 8x8 pixels instead.\n({error})", file=sys.stderr)
        return data.load("digits", binarize="dynamic", seed=arguments.seed)


def show(title: str, found: lab.Comparison, path: Path) -> None:
    """Prints a comparison and what it means, and leaves it as files."""
    print(f"\n{title}\n\n{found}\n", *meaning(found), sep="\n")
    path.with_suffix(".json").write_text(found.to_json())
    path.with_suffix(".csv").write_text(found.to_csv())
    found.snr_figure().savefig(f"{path}_snr.png", dpi=150)
    found.cost_figure().savefig(f"{path}_cost.png", dpi=150)


def meaning(found: lab.Comparison) -> Iterator[str]:
    """What a table says of the encoder, in words."""
    rows = [row for row in found.rows if row.group == "guide"]
    biased = ", ".join(row.estimator for row in rows if row.biased)
    yield f"- Biased, which more steps do not cure: {biased or 'none that these draws could tell'}."
    noise = 1e-10 * max(row.variance for row in rows)
    if still := ", ".join(row.estimator for row in rows if row.variance < noise):
        yield f"- Without variance here, so that training comes to rest: {still}."
    for family in dict.fromkeys(row.family for row in rows):
        members = sorted((row for row in rows if row.family == family), key=lambda row: row.num_particles)
        first, last = members[0], members[-1]
        if last.num_particles > first.num_particles:
            ratio, change = last.snr / first.snr, "changes little"
            if not 0.7 < ratio < 1.4:
                change = "grows" if ratio > 1 else "dies: the bound tightens, and the encoder learns less"
            particles = f"from K = {first.num_particles} to {last.num_particles}"
            yield f"- {family}, {particles}: the signal-to-noise ratio is {ratio:.2g} times as large. It {change}."


if __name__ == "__main__":
    main()
