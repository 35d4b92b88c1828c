"""Trains a variational autoencoder as a Pyro program, by stochastic variational inference on the ELBO.

    python examples/mnist_svi.py                                   # MNIST if it can be had, else scikit-learn's digits
    python examples/mnist_svi.py --likelihood continuous-bernoulli # grey pixels, another likelihood
    python examples/mnist_svi.py --prior mixture --elbo mean-field --device cuda

It leaves metrics.json, a checkpoint and pictures in the folder of --out. Every figure is in nats per image.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_vae import VAE, checkpoint, conditionals, data, elbo, evaluation, fit, likelihoods, nets, plots, priors

DATASETS = ("mnist", "fashion_mnist", "kmnist", "emnist", "omniglot", "svhn", "cifar10", "digits")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=("auto", *DATASETS), default="auto")
    parser.add_argument("--likelihood", choices=("bernoulli", "continuous-bernoulli", "normal"), default="bernoulli")
    parser.add_argument("--prior", choices=("normal", "mixture"), default="normal")
    parser.add_argument("--elbo", choices=("trace", "mean-field"), default="trace")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--latent-size", type=int, default=50)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/mnist_svi"))
    arguments = parser.parse_args()
    try:
        run(arguments)
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f"error: {error}")


def run(arguments: argparse.Namespace) -> None:
    start = time.perf_counter()
    make_writable(arguments.out)
    device = "cuda" if arguments.device == "auto" and torch.cuda.is_available() else arguments.device
    train, valid, test = load(arguments, "cpu" if device == "auto" else device)
    print(f"{train}\n{len(valid)} images for validation, {len(test)} for the test, on {train.device}")

    torch.manual_seed(arguments.seed)
    vae = build(arguments, train).to(train.device)
    print("nats per image   train -ELBO  -E[log p(x|z)]      KL   valid -ELBO  -E[log p(x|z)]      KL   seconds")
    history = fit(
        vae,
        train,
        validation=valid,
        loss=elbo.ELBO(analytic_kl=arguments.elbo == "mean-field"),
        optimizer=partial(torch.optim.Adam, lr=arguments.learning_rate, fused=True),
        scheduler=partial(CosineAnnealingLR, T_max=arguments.epochs),
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        progress=False,
        on_epoch=report,
    )

    terms = [evaluation.elbo_terms(vae, *batch) for batch in test.batches(1000)]
    fields = ("elbo", "expected_log_likelihood", "kl")
    metrics = {f"test_{field}": torch.cat([getattr(t, field) for t in terms]).mean().item() for field in fields}
    metrics["seconds"] = time.perf_counter() - start
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    out: Path = arguments.out
    (out / "metrics.json").write_text(json.dumps({**metrics, "settings": settings, "history": asdict(history)}))
    checkpoint.save(out / "vae.safetensors", vae, settings)
    originals = next(test.batches(32))[0]
    pictures: dict[str, Figure] = {
        "reconstructions": plots.reconstructions(originals, vae.reconstruct(originals)),
        "samples": plots.images(vae.sample(64, mean=True)),
        "curves": plots.curves(history),
    }
    for name, figure in pictures.items():
        figure.savefig(out / f"{name}.png", dpi=150)
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
    """A prior, a likelihood and a posterior: each is swapped by its own line."""
    shape, latent, mean = train.event_shape, arguments.latent_size, train.mean().cpu()
    decoder = nets.MLP(latent, [200, 200])
    likelihood: dict[str, Callable[[], likelihoods.Likelihood]] = {
        "bernoulli": partial(likelihoods.Bernoulli, decoder, shape, data_mean=mean),
        "continuous-bernoulli": partial(likelihoods.ContinuousBernoulli, decoder, shape, data_mean=mean),
        "normal": partial(likelihoods.Normal, decoder, shape, scale="learned", min_scale=0.05),
    }
    prior: dict[str, Callable[[], priors.Prior]] = {
        "normal": partial(priors.StandardNormal, latent),
        "mixture": partial(priors.MixtureOfNormals, latent, num_components=20),
    }
    return VAE(
        prior=prior[arguments.prior](),
        likelihood=likelihood[arguments.likelihood](),
        posterior=conditionals.DiagonalNormal(nets.MLP(shape, [200, 200]), latent),
    )


def report(row: dict[str, float]) -> None:
    """One line an epoch."""
    cells = [
        f"{-row[f'{split}_elbo']:11.2f} {-row[f'{split}_expected_log_likelihood']:15.2f} {row[f'{split}_kl']:7.2f}"
        for split in ("train", "valid")
    ]
    print(f"epoch {row['epoch']:3.0f}        {'  '.join(cells)} {row['seconds']:9.1f}", flush=True)


def make_writable(out: Path) -> None:
    """Makes the output folder before training, so that an hour's work is not lost at its end."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".writable").touch()
        (out / ".writable").unlink()
    except OSError as error:
        raise OSError(f"--out: expected a folder one can write to; got {out} ({error}). Name another.") from error


if __name__ == "__main__":
    main()
