"""Trains a variational autoencoder as a Pyro program, by stochastic variational inference on the ELBO.

    python examples/mnist_svi.py                                   # MNIST if it can be had, else scikit-learn's digits
    python examples/mnist_svi.py --likelihood continuous-bernoulli # gray pixels, another likelihood
    python examples/mnist_svi.py --prior mixture --elbo mean-field --device cuda
    torchrun --nproc-per-node=2 examples/mnist_svi.py              # two processes, each on a part of every batch

It leaves metrics.json, the trained program and pictures in the folder of --out. Every figure is in nats per image.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_vae import VAE, conditionals, data, elbo, evaluation, fit, likelihoods, nets, plots, priors, save

FIRST = os.environ.get("RANK", "0") == "0"  # of torchrun's processes, which writes and speaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="auto", help="a name that data.load knows (default: mnist, else digits)")
    parser.add_argument("--likelihood", choices=("bernoulli", "continuous-bernoulli", "normal"), default="bernoulli")
    parser.add_argument("--prior", choices=("normal", "mixture"), default="normal")
    parser.add_argument("--elbo", choices=("trace", "mean-field"), default="trace")
    length = parser.add_mutually_exclusive_group()
    for flag in ("--epochs", "--steps"):
        length.add_argument(flag, type=int, help="by default 8,000 steps of a large set and 2,500 of a small one")
    for flag, number in (("--batch-size", 128), ("--latent-size", 20), ("--seed", 0)):
        parser.add_argument(flag, type=int, default=number)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=Path, default=Path("runs/mnist_svi"))
    arguments = parser.parse_args()
    try:
        with contextlib.nullcontext() if FIRST else contextlib.redirect_stdout(None):
            run(arguments)
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f"error: {error}")


def run(arguments: argparse.Namespace) -> None:
    start, out = time.perf_counter(), arguments.out
    try:  # before training, so that an hour's work is not lost at its end
        out.mkdir(parents=True, exist_ok=True)
        (out / "metrics.json").touch()
    except OSError as error:
        raise OSError(f"--out: expected a folder one can write to; got {out} ({error}). Name another.") from error
    device = "cuda" if arguments.device == "auto" and torch.cuda.is_available() else arguments.device
    train, validation, test = load(arguments, "cpu" if device == "auto" else device)
    per_epoch = -(-len(train) // arguments.batch_size)
    steps = arguments.steps if arguments.epochs is None else arguments.epochs * per_epoch
    steps = steps if steps is not None else 8000 if len(train) > 10_000 else 2500
    torch.manual_seed(arguments.seed)
    vae = build(arguments, train).to(train.device)
    print(f"{train}\n{len(validation)} images for validation, {len(test)} for the test, on {train.device}")
    print("nats per image   train -ELBO  -E[log p(x|z)]      KL   valid. -ELBO  -E[log p(x|z)]     KL   seconds")
    history = fit(
        vae,
        train,
        validation=validation,
        loss=elbo.ELBO(analytic_kl=arguments.elbo == "mean-field"),
        optimizer=partial(torch.optim.Adam, lr=arguments.learning_rate, fused=True),
        scheduler=partial(CosineAnnealingLR, T_max=-(-steps // per_epoch) or 1),
        steps=steps,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        progress=False,
        on_epoch=partial(report, every=-(-steps // per_epoch // 20) or 1),
    )
    if not FIRST:
        return
    terms = [evaluation.elbo_terms(vae, *batch) for batch in test.batches(1000)]
    names = ("elbo", "expected_log_likelihood", "kl")
    metrics = {f"test_{name}": torch.cat([getattr(t, name) for t in terms]).mean().item() for name in names}
    metrics["seconds"] = time.perf_counter() - start
    results = {**metrics, "settings": vars(arguments), "history": asdict(history)}
    (out / "metrics.json").write_text(json.dumps(results, default=str))
    save(out / "vae", vae, figures=metrics)  # which pyro_vae.load gives back
    (x,) = next(test.batches(32))
    grays = data.load(train.name, seed=arguments.seed).test.tensor()[:32]  # what the bits were drawn from
    kind = f"E[x|z], {type(vae.likelihood).__name__} likelihood"
    caption = f"Test images, each above {kind}, at a draw of z given its bits"
    pairs = plots.reconstructions(grays, vae.reconstruct(x).cpu(), caption=caption)
    pairs.savefig(out / "reconstructions.png", dpi=150)
    plots.images(vae.sample(64, mean=True), caption=f"At z ~ p(z): {kind}").savefig(out / "samples.png", dpi=150)
    plots.curves(history).savefig(out / "curves.png", dpi=150)
    print(
        f"test: -ELBO {-metrics['test_elbo']:.2f}, -E[log p(x|z)] {-metrics['test_expected_log_likelihood']:.2f}, "
        f"KL {metrics['test_kl']:.2f} nats per image; {metrics['seconds']:.0f} s; see {out}"
    )


def load(arguments: argparse.Namespace, device: str) -> data.Splits:
    """The data set of the flags; ``auto`` falls back, loudly, on the digits that come with scikit-learn."""
    binarize: data.Binarize = "dynamic" if arguments.likelihood == "bernoulli" else "none"
    name = "mnist" if arguments.dataset == "auto" else arguments.dataset
    try:
        return data.load(name, binarize=binarize, seed=arguments.seed, device=device)
    except data.DatasetNotFoundError as error:
        if arguments.dataset != "auto":
            raise
        print(f"NO MNIST: training on scikit-learn's 1,797 digits of 8x8 pixels instead.\n({error})", file=sys.stderr)
        return data.load("digits", binarize=binarize, seed=arguments.seed, device=device)


def build(arguments: argparse.Namespace, train: data.Dataset) -> VAE:
    """A prior, a likelihood and a posterior: each is chosen on its own line."""
    shape, latent, mean = train.event_shape, arguments.latent_size, train.mean().cpu()
    decoder = nets.MLP(latent, [200, 200])
    likelihood: dict[str, Callable[[], likelihoods.Likelihood]] = {
        "bernoulli": partial(likelihoods.Bernoulli, decoder, shape, data_mean=mean),
        "continuous-bernoulli": partial(likelihoods.ContinuousBernoulli, decoder, shape, data_mean=mean),
        "normal": partial(likelihoods.Normal, decoder, shape, scale="learned", min_scale=0.05),
    }
    normal = arguments.prior == "normal"
    return VAE(
        prior=priors.StandardNormal(latent) if normal else priors.MixtureOfNormals(latent, num_components=20),
        likelihood=likelihood[arguments.likelihood](),
        posterior=conditionals.DiagonalNormal(nets.MLP(shape, [200, 200]), latent),
    )


def report(row: dict[str, float], every: int) -> None:
    """A line, twenty in all."""
    if row["epoch"] % every:
        return
    cells = [
        f"{-row[f'{split}_elbo']:11.2f} {-row[f'{split}_expected_log_likelihood']:15.2f} {row[f'{split}_kl']:7.2f}"
        for split in ("train", "validation")
    ]
    print(f"epoch {row['epoch']:3.0f}        {'  '.join(cells)} {row['seconds']:9.1f}", flush=True)


if __name__ == "__main__":
    main()
