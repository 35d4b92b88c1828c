"""The README's picture: handwritten digits, what a VAE makes of them, and digits that nobody wrote.

    python examples/digits_picture.py --out docs/_static

From the top: test data; E[x|z] for z drawn from q(z|x); two rows of E[x|z] for z drawn from the prior. It needs no
network: the digits, 8 x 8 counts of ink from 0 to 16, come with scikit-learn.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch

from pyro_vae import VAE, conditionals, data, evaluation, fit, likelihoods, nets, plots, priors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/digits_picture"))
    arguments = parser.parse_args()

    torch.manual_seed(0)
    train, _, test = data.load("digits", binarize="none")
    vae = VAE(
        prior=priors.VampPrior(pseudo_inputs=train.tensor()[:100]),
        likelihood=likelihoods.Binomial(nets.MLP(8, [128]), (1, 8, 8), total_count=16),
        posterior=conditionals.DiagonalNormal(nets.MLP((1, 8, 8), [128]), 8),
    )
    adam = partial(torch.optim.Adam, lr=3e-3)
    fit(vae, train, epochs=arguments.epochs, optimizer=adam, seed=0, compile=False, progress=False)
    print(f"test ELBO {evaluation.elbo_terms(vae, test.tensor()).elbo.mean():.1f} nats per digit")

    x = test.tensor()[:16]
    shown = torch.cat([x, vae.reconstruct(x), vae.sample(32, mean=True)])  # white is ink
    arguments.out.mkdir(parents=True, exist_ok=True)
    plots.images(1 - shown, columns=16).savefig(arguments.out / "digits.png", dpi=75)


if __name__ == "__main__":
    main()
