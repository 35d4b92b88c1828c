"""The ELBO in bytes: digits of scikit-learn compressed by a trained VAE, and what each term of the ELBO costs.

    python examples/elbo_in_bytes.py
    python examples/elbo_in_bytes.py --out digits.vae

Bits-back coding writes a datum in -ELBO / log 2 bits, so that a VAE is a compressor as good as its ELBO: the
reconstruction term is the length of x given z, the KL the price of z. Half of the digits train the VAE, and the other
half are compressed into a file, decompressed, and compared bit for bit. The weights are what sender and receiver share;
they are not in the file, as the tables of gzip are not.
"""

from __future__ import annotations

import argparse
import gzip
import time
from functools import partial
from pathlib import Path

import torch
from sklearn.datasets import load_digits

from pyro_vae import VAE, coding, conditionals, data, fit, likelihoods, nets, priors

LEVELS = 17  # ink from 0 to 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--out", type=Path, help="where to keep the file")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    x = torch.tensor(load_digits().data, dtype=torch.float32) / (LEVELS - 1)
    train, test = x[::2], x[1::2]
    vae = VAE(
        prior=priors.StandardNormal(8),
        likelihood=likelihoods.DiscretizedLogistic(nets.MLP(8, [100]), 64, levels=LEVELS, scale="per_element"),
        posterior=conditionals.DiagonalNormal(nets.MLP(64, [100]), 8),
    )
    how = {"epochs": arguments.epochs, "batch_size": 64, "seed": 0, "progress": False}
    fit(vae, data.as_dataset(train), optimizer=partial(torch.optim.Adam, lr=2e-3), **how)

    start = time.perf_counter()
    content = coding.compress(vae, test)
    seconds = time.perf_counter() - start
    again = coding.decompress(vae, content)
    print(f"{len(test)} digits of {test[0].numel()} pixels came back bit for bit: {torch.equal(again, test)}")
    print(f"{len(test) / seconds:,.0f} digits a second, each decoded once to be sure")
    if arguments.out:
        arguments.out.write_bytes(content)
        print(f"in {arguments.out}, {arguments.out.stat().st_size:,} bytes")

    length = coding.code_length(vae, test, content, num_particles=20)
    print(f"\n{length}\n")
    plain = (test * (LEVELS - 1)).byte().numpy().tobytes()
    print(
        f"gzip of the same pixels: {len(gzip.compress(plain, 9)):,} bytes; five bits a pixel: {5 * len(plain) // 8:,}"
    )
    print(
        f"A digit is {length.neg_elbo.value * 64:.0f} bits: {length.of_x_given_z.value * 64:.0f} for x given z, the "
        f"reconstruction term, and {length.of_z.value * 64:.0f} for z, the KL."
    )


if __name__ == "__main__":
    main()
