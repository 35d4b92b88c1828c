"""Images compressed by trained programs: the length of the file, -ELBO of the same images, and gzip, zstd and PNG.

    OMP_NUM_THREADS=1 PYRO_VAE_DATA=... python benchmarks/coding.py
    OMP_NUM_THREADS=1 PYRO_VAE_DATA=... python benchmarks/coding.py --rows mnist digits-categorical --epochs 5

MNIST is binarized; its 10,000 test images are compressed, by 784-200-200-50 (50,000 training images, batch 128, Adam,
cosine schedule) and by two layers 784-[200, 200]-100-[100, 100]-50: "bottom-up" by Bit-Swap, and "top-down". Of the
digits of scikit-learn, 8x8 of 17 levels, every second is compressed, by 64-100-8 trained on the others; two layers are
64-[100]-12-[50]-6. "dims" are pixels. The file is whole, with its header and the random bits to begin with, which are
also given by themselves; nothing is subtracted but from "net". The weights are not in the file. -ELBO is of
``evaluation.elbo_terms``, with draws of its own.

gzip -9 and zstd -19 get all images as one stream, of binary ones eight pixels a byte, of digits a byte a pixel. PNG is
of each image by itself, 1 bit a pixel where they are binary, and of all of them in one tall image. Speed is of
``decompress``; ``compress`` runs the guide once more, encodes, and decodes.
"""

from __future__ import annotations

import argparse
import gzip
import io
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_vae import VAE, HierarchicalVAE, coding, conditionals, data, fit, likelihoods, nets, priors, schedules

Program = VAE | HierarchicalVAE
MakeLikelihood = Callable[[nets.Body], likelihoods.Likelihood]


def one_layer(shape: tuple[int, ...], hidden: list[int], latent: int, likelihood: MakeLikelihood) -> VAE:
    return VAE(
        priors.StandardNormal(latent),
        likelihood(nets.MLP(latent, hidden)),
        conditionals.DiagonalNormal(nets.MLP(shape, hidden), latent),
    )


def two_layers(
    shape: tuple[int, ...],
    hidden: list[int],
    lower: int,
    above: list[int],
    latent: int,
    likelihood: MakeLikelihood,
    inference: Literal["bottom-up", "top-down"],
) -> HierarchicalVAE:
    return HierarchicalVAE(
        priors.StandardNormal(latent),
        [conditionals.DiagonalNormal(nets.MLP(latent, above), lower)],
        likelihood(nets.MLP(lower, hidden)),
        [
            conditionals.DiagonalNormal(nets.MLP(shape, hidden), lower),
            conditionals.DiagonalNormal(nets.MLP(lower if inference == "bottom-up" else hidden[-1], above), latent),
        ],
        inference=inference,
    )


def mnist(make: Callable[[MakeLikelihood], Program], epochs: int) -> tuple[Program, Tensor]:
    train, validation, test = data.load("mnist", binarize="dynamic")
    vae = make(partial(likelihoods.Bernoulli, event_shape=(1, 28, 28), data_mean=train.mean()))
    trained(vae, train, validation, epochs)
    return vae, test.tensor()


def digits(
    make: Callable[[MakeLikelihood], Program], likelihood: MakeLikelihood, unit: float, epochs: int
) -> tuple[Program, Tensor]:
    x = torch.tensor(load_digits().data, dtype=torch.float32) / unit
    vae = make(likelihood)
    trained(vae, data.as_dataset(x[::2]), None, 20 * epochs)
    return vae, x[1::2]


def trained(vae: Program, train: data.Dataset, validation: data.Dataset | None, epochs: int) -> None:
    fit(
        vae,
        train,
        validation,
        optimizer=partial(torch.optim.Adam, lr=2e-3),
        scheduler=partial(CosineAnnealingLR, T_max=epochs),
        epochs=epochs,
        beta=schedules.linear(0.0, 1.0, epochs / 5) if isinstance(vae, HierarchicalVAE) else None,
        progress=False,
    )


IMAGE, ROW = (1, 28, 28), (64,)
of_mnist = partial(one_layer, IMAGE, [200, 200], 50)
of_mnist_in_two = partial(two_layers, IMAGE, [200, 200], 100, [100, 100], 50)
of_digits = partial(one_layer, ROW, [100], 8)
of_digits_in_two = partial(two_layers, ROW, [100], 12, [50], 6, inference="bottom-up")
categorical: MakeLikelihood = partial(likelihoods.Categorical, 17, event_shape=64)
binomial: MakeLikelihood = partial(likelihoods.Binomial, event_shape=64, total_count=16, spacing=1.0)
logistic: MakeLikelihood = partial(likelihoods.DiscretizedLogistic, event_shape=64, levels=17, scale="per_element")
ROWS: dict[str, Callable[[int], tuple[Program, Tensor]]] = {
    "mnist": partial(mnist, of_mnist),
    "mnist-bottom-up": partial(mnist, partial(of_mnist_in_two, inference="bottom-up")),
    "mnist-top-down": partial(mnist, partial(of_mnist_in_two, inference="top-down")),
    "digits-categorical": partial(digits, of_digits, categorical, 1),
    "digits-categorical-bottom-up": partial(digits, of_digits_in_two, categorical, 1),
    "digits-logistic": partial(digits, of_digits, logistic, 16),
    "digits-binomial": partial(digits, of_digits, binomial, 1),
}


def others(x: Tensor) -> dict[str, int]:
    """Bytes of the images as common programs write them."""
    import zstandard

    levels = (x * (16 if 0 < x[x > 0].min() < 1 else 1)).round().numpy().astype(np.uint8)
    binary = levels.max() == 1
    images = levels.reshape(len(x), *((28, 28) if binary else (8, 8)))
    stream = (np.packbits(levels.reshape(len(x), -1), 1) if binary else levels).tobytes()
    return {
        "gzip": len(gzip.compress(stream, 9, mtime=0)),
        "zstd": len(zstandard.ZstdCompressor(level=19).compress(stream)),
        "PNG each": sum(len(png(image, binary)) for image in images),
        "PNG of all": len(png(images.reshape(-1, images.shape[-1]), binary)),
    }


def png(pixels: np.ndarray, binary: bool) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(pixels * 255 if binary else pixels)
    (image.convert("1") if binary else image).save(file, "PNG", optimize=True)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--epochs", type=int, default=15, help="of MNIST; digits are trained for 20 times as many")
    parser.add_argument("--particles", type=int, default=10, help="draws per image, for -ELBO")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    columns = ("bits/dim", "net", "-ELBO", "+- s.e.", "x given z", "z", "ratio", "net", "images/s", "seconds")
    print(f"{'':28}" + "".join(f"{column:>10}" for column in columns), flush=True)
    compared: dict[str, Tensor] = {}
    for row in arguments.rows:
        torch.manual_seed(arguments.seed)
        start = time.perf_counter()
        vae, x = ROWS[row](arguments.epochs)
        seconds = time.perf_counter() - start
        content = coding.compress(vae, x)
        start = time.perf_counter()
        again = coding.decompress(vae, content)
        rate = len(x) / (time.perf_counter() - start)
        assert torch.equal(again, x)
        length = coding.code_length(vae, x, content, num_particles=arguments.particles)
        bound = length.neg_elbo
        print(
            f"{row:28}{length.bits_per_dim:10.4f}{length.net_bits_per_dim:10.4f}{bound.value:10.4f}"
            f"{bound.standard_error:10.4f}{length.of_x_given_z.value:10.4f}{length.of_z.value:10.4f}"
            f"{length.ratio:10.4f}{length.net_ratio:10.4f}{rate:10.0f}{seconds:10.0f}\n"
            f"{'':28}  {len(content):,} bytes, of which to begin with {length.initial_bits // 8:,}, header "
            f"{length.header_bits // 8:,}",
            flush=True,
        )
        compared.setdefault(row.split("-")[0], x)
    for name, x in compared.items():
        print(f"\n{name}, {len(x):,} images of {x[0].numel()} pixels")
        for other, size in others(x).items():
            print(f"{other:12}{8 * size / x.numel():8.4f} bits/dim {size:10,} bytes")


if __name__ == "__main__":
    main()
