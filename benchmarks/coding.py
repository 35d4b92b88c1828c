"""Images compressed by trained programs: the length of the file, -ELBO of the same images, and gzip, zstd and PNG.

    OMP_NUM_THREADS=1 PYRO_VAE_DATA=... python benchmarks/coding.py
    OMP_NUM_THREADS=1 PYRO_VAE_DATA=... python benchmarks/coding.py --rows mnist digits-categorical --epochs 5
    python benchmarks/coding.py --json benchmarks/results/coding.json  # keeps the rows

MNIST is binarized; its 10,000 test images are compressed, by 784-200-200-50 (50,000 training images, batch 128, Adam,
cosine schedule) and by two layers 784-[200, 200]-100-[100, 100]-50: "bottom-up" by Bit-Swap, and "top-down". Of the
digits of scikit-learn, 8x8 of 17 levels, every second is compressed, by 64-100-8 trained on the others; two layers are
64-[100]-12-[50]-6. "dims" are pixels; -ELBO, its standard error over images, and its terms are in bits/dim too. The
file is whole, with its header and the random bits to begin with, which are also given by themselves; nothing is
subtracted but from "net". The weights are not in the file. -ELBO is of ``evaluation.elbo_terms``, with draws of its
own.

gzip -9 and zstd -19 get all images as one stream, of binary ones eight pixels a byte, of digits a byte a pixel. PNG is
of each image by itself, 1 bit a pixel where they are binary, and of all of them in one tall image. Speed is of
``decompress``; ``compress`` runs the guide once more, encodes, and decodes. Seconds are the processor's, of one thread.
"""

from __future__ import annotations

import argparse
import gzip
import io
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import records
import torch
import zstandard
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_vae import VAE, HierarchicalVAE, coding, conditionals, data, fit, likelihoods, nets, priors, schedules

RESULTS = records.FOLDER / "coding.json"
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


def measure(row: str, epochs: int, particles: int, seed: int) -> dict[str, Any]:
    """Trains, compresses and decompresses; settings and figures, of which lengths are in bits a pixel.

    Raises:
        SystemExit: what was decompressed is not what was compressed.
    """
    torch.manual_seed(seed)
    start = time.process_time()
    vae, x = ROWS[row](epochs)
    seconds = [time.process_time() - start]
    content = coding.compress(vae, x)
    seconds.append(time.process_time() - start - sum(seconds))
    again = coding.decompress(vae, content)
    seconds.append(time.process_time() - start - sum(seconds))
    if not (again.dtype == x.dtype and torch.equal(again, x)):
        raise SystemExit(f"error: {row} did not come back bit for bit")
    length = coding.code_length(vae, x, content, num_particles=particles)
    return {
        "epochs": epochs if row.startswith("mnist") else 20 * epochs,
        "seed": seed,
        "draws for -ELBO": particles,
        "images": len(x),
        "pixels": x[0].numel(),
        "bytes": len(content),
        "bytes to begin with": length.initial_bits // 8,
        "bytes of header": length.header_bits // 8,
        "bits/dim": length.bits_per_dim,
        "net bits/dim": length.net_bits_per_dim,
        "-ELBO": length.neg_elbo.value,
        "-ELBO error": length.neg_elbo.standard_error,
        "x given z": length.of_x_given_z.value,
        "z": length.of_z.value,
        "ratio": length.ratio,
        "net ratio": length.net_ratio,
        "round trip": "bit for bit",
        **dict(zip(("seconds of training", "seconds to compress", "seconds to decompress"), seconds, strict=True)),
        "others, bytes": others(x),
    }


def table(path: Path = RESULTS) -> str:
    """The rows that have been run, as Markdown, and beside them the common programs."""
    found = records.read(path)
    lines = []
    for row in sorted(found, key=list(ROWS).index):
        its = found[row]
        rates = [f"{its['images'] / its[f'seconds to {way}']:,.0f}" for way in ("compress", "decompress")]
        lengths = [f"{its[name]:.4f}" for name in ("bits/dim", "-ELBO", "x given z", "z", "ratio", "net ratio")]
        lengths[1] += f" ± {its['-ELBO error']:.4f}"
        lines.append([row, str(its["epochs"]), f"{its['bytes']:,}", *lengths, *rates])
    ours = ["program", "epochs", "bytes", "bits/dim", "-ELBO", "x given z", "z", "ratio", "net ratio"]
    each = {row.split("-")[0]: found[row] for row in found}
    theirs = [
        [f"{name}, {its['images']:,} images", *(f"{8 * size / its['images'] / its['pixels']:.4f}" for size in sizes)]
        for name, its in each.items()
        if (sizes := its["others, bytes"].values())
    ]
    return (
        records.markdown([*ours, "compressed, images/s", "decompressed, images/s"], lines)
        + "\n\n"
        + records.markdown(["bits/dim of", *next(iter(each.values()))["others, bytes"]], theirs)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--epochs", type=int, default=15, help="of MNIST, 15; digits are trained for 20 times as many")
    parser.add_argument("--particles", type=int, default=10, help="draws per image, for -ELBO; 10")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the rows, in which others stay")
    arguments = parser.parse_args()
    columns = ("bits/dim", "net bits/dim", "-ELBO", "-ELBO error", "x given z", "z", "ratio", "net ratio")
    print(f"{'':28}" + "".join(f"{column:>13}" for column in (*columns, "images/s", "training, s")), flush=True)
    compared: dict[str, dict[str, Any]] = {}
    for row in arguments.rows:
        found = measure(row, arguments.epochs, arguments.particles, arguments.seed)
        records.keep(arguments.json, row, found)
        print(
            f"{row:28}"
            + "".join(f"{found[column]:13.4f}" for column in columns)
            + f"{found['images'] / found['seconds to decompress']:13.0f}"
            f"{found['seconds of training']:13.0f}\n{'':28}  {found['bytes']:,} bytes, of which to begin with "
            f"{found['bytes to begin with']:,}, header {found['bytes of header']:,}",
            flush=True,
        )
        compared.setdefault(row.split("-")[0], found)
    for name, found in compared.items():
        print(f"\n{name}, {found['images']:,} images of {found['pixels']} pixels")
        for other, size in found["others, bytes"].items():
            print(f"{other:12}{8 * size / found['images'] / found['pixels']:8.4f} bits/dim {size:10,} bytes")


if __name__ == "__main__":
    main()
