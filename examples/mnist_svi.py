"""Trains a variational autoencoder as a Pyro program, by stochastic variational inference on the ELBO.

    python examples/mnist_svi.py                                   # MNIST if it can be had, else scikit-learn's digits
    python examples/mnist_svi.py --likelihood continuous-bernoulli --prior mixture --elbo mean-field --device cuda
    torchrun --nproc-per-node=2 examples/mnist_svi.py              # two processes, each on a part of every batch

It leaves metrics.json, the trained program and pictures in the folder of --out. Every figure is in nats per image.
"""

import argparse
import json
import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_vae import VAE, conditionals, data, elbo, evaluation, fit, likelihoods, nets, plots, priors, save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="auto", help="a name that data.load knows (default: mnist, else digits)")
    parser.add_argument("--likelihood", choices=("bernoulli", "continuous-bernoulli", "normal"), default="bernoulli")
    parser.add_argument("--prior", choices=("normal", "mixture"), default="normal")
    parser.add_argument("--elbo", choices=("trace", "mean-field"), default="trace")
    length = parser.add_mutually_exclusive_group()
    for flag in ("--epochs", "--steps"):
        length.add_argument(flag, type=int, help="by default 8,000 steps of a large set and 2,500 of a small one")
    for flag, number in (("--batch-size", 128), ("--latent-size", 20), ("--seed", 0), ("--learning-rate", 3e-3)):
        parser.add_argument(flag, type=type(number), default=number)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=Path, default=Path("runs/mnist_svi"))
    try:
        run(parser.parse_args())
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f"error: {error}")


def run(arguments: argparse.Namespace) -> None:
    out, seed, latent = arguments.out, arguments.seed, arguments.latent_size
    try:  # before training, so that an hour's work is not lost at its end
        out.mkdir(parents=True, exist_ok=True)
        (out / "metrics.json").touch()
    except OSError as error:
        raise OSError(f"--out: expected a folder one can write to; got {out} ({error}). Name another.") from error
    device = arguments.device.replace("auto", "cuda" if torch.cuda.is_available() else "cpu")
    train, validation, test = load(arguments, device)
    per_epoch = -(-len(train) // arguments.batch_size)
    steps = arguments.steps if arguments.epochs is None else arguments.epochs * per_epoch
    steps = steps if steps is not None else 8000 if len(train) > 10_000 else 2500
    torch.manual_seed(seed)
    decoder, shape, mean = nets.MLP(latent, [200, 200]), train.event_shape, train.mean().cpu()
    likelihood = {
        "bernoulli": lambda: likelihoods.Bernoulli(decoder, shape, data_mean=mean),
        "continuous-bernoulli": lambda: likelihoods.ContinuousBernoulli(decoder, shape, data_mean=mean),
        "normal": lambda: likelihoods.Normal(decoder, shape, scale="learned", min_scale=0.05),
    }
    prior = {"normal": priors.StandardNormal(latent), "mixture": priors.MixtureOfNormals(latent, num_components=20)}
    posterior = conditionals.DiagonalNormal(nets.MLP(shape, [200, 200]), latent)
    vae = VAE(prior[arguments.prior], likelihood[arguments.likelihood](), posterior).to(device)
    loss = elbo.ELBO(analytic_kl=arguments.elbo == "mean-field")
    adam = partial(torch.optim.Adam, lr=arguments.learning_rate, fused=True)
    cosine = partial(CosineAnnealingLR, T_max=-(-steps // per_epoch) or 1)
    how = {"steps": steps, "batch_size": arguments.batch_size, "seed": seed}
    history = fit(vae, train, validation, loss=loss, optimizer=adam, scheduler=cosine, **how)
    if os.environ.get("RANK", "0") != "0":  # of torchrun's processes the first one writes and speaks
        return
    terms = [evaluation.elbo_terms(vae, *batch) for batch in test.batches(1000)]
    names = ("elbo", "expected_log_likelihood", "kl")
    metrics = {f"test_{name}": torch.cat([getattr(t, name) for t in terms]).mean().item() for name in names}
    results = {**metrics, "settings": vars(arguments), "history": asdict(history)}
    (out / "metrics.json").write_text(json.dumps(results, default=str))
    save(out / "vae", vae, figures=metrics)  # which pyro_vae.load gives back
    (x,) = next(test.batches(32))
    plots.reconstructions(x, vae.reconstruct(x).cpu()).savefig(out / "reconstructions.png", dpi=150)
    plots.images(vae.sample(64, mean=True), caption="E[x|z] at z ~ p(z)").savefig(out / "samples.png", dpi=150)
    plots.curves(history).savefig(out / "curves.png", dpi=150)
    bound, fit_term, kl = metrics.values()
    print(f"test: -ELBO {-bound:.2f}, -E[log p(x|z)] {-fit_term:.2f}, KL {kl:.2f} nats per image; see {out}")


def load(arguments: argparse.Namespace, device: str) -> data.Splits:
    name = "mnist" if arguments.dataset == "auto" else arguments.dataset
    choices = {"binarize": "dynamic" if arguments.likelihood == "bernoulli" else "none", "seed": arguments.seed}
    try:
        return data.load(name, device=device, **choices)
    except data.DatasetNotFoundError as error:
        if arguments.dataset != "auto":
            raise
        print(f"NO MNIST: training on scikit-learn's 1,797 digits of 8x8 pixels instead.\n({error})", file=sys.stderr)
        return data.load("digits", device=device, **choices)


if __name__ == "__main__":
    main()
