"""A hierarchy of 20 groups of latents beside a flat VAE on color images: bound, step time and memory.

    OMP_NUM_THREADS=1 python benchmarks/deep.py

Images are made here, of 32x32 pixels in 256 levels: a shaded background, one to three disks and rectangles of other
colors that hide one another, and noise of two levels. All contenders take the same number of steps of Adam on the same
batches; bits per dimension are a bound (one draw of the latents) on images that were not trained on. Memory is the peak
of the bytes of all tensors that a step makes; times are medians of steps that are not compiled. A step that is not
finite ends the run.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_vae import SVI, VAE, TopDownVAE, conditionals, elbo, likelihoods, nets, priors
from pyro_vae.graphs.memory import peak_memory

SIZE, GROUPS = 32, [2, 3, 4, 5, 4, 2]
LIKELIHOODS: dict[str, Any] = {
    "logistic": likelihoods.DiscretizedLogistic,
    "mixture": partial(likelihoods.MixtureOfDiscretizedLogistics, num_components=5),
}


def shapes(n: int, seed: int) -> Tensor:
    """Images (n, 3, 32, 32) of disks and rectangles, k / 255."""
    generator = torch.Generator().manual_seed(seed)
    rand = partial(torch.rand, generator=generator)
    row, column = torch.meshgrid(*[torch.linspace(0, 1, SIZE)] * 2, indexing="ij")
    slope = rand(n, 3, 2, 1, 1) - 0.5
    images = 0.5 + 0.5 * (rand(n, 3, 1, 1) - 0.5) + 0.4 * (slope[:, :, 0] * row + slope[:, :, 1] * column)
    for number in range(3):
        center, radius = rand(2, n, 1, 1), 0.1 + 0.2 * rand(n, 1, 1)
        distance = torch.stack([(row - center[0]).abs(), (column - center[1]).abs()])
        disk, square = distance.square().sum(0) < radius**2, distance.amax(0) < radius
        inside = torch.where(rand(n, 1, 1) < 0.5, disk, square) & (rand(n, 1, 1) < 1 - 0.3 * number)
        images = torch.where(inside.unsqueeze(1), rand(n, 3, 1, 1), images)
    noise = torch.randn(images.shape, generator=generator)
    return (255 * images + 2 * noise).round().clamp(0, 255) / 255


def flat(likelihood: Callable[..., Any], channels: int) -> VAE:
    """One layer of 64 latents between residual networks."""
    stages = [2 * channels, 4 * channels, 8 * channels]
    body = nets.ResidualDecoder(64, (3, SIZE, SIZE), stages[::-1], blocks=2)
    encoder = nets.ResidualEncoder((3, SIZE, SIZE), stages, blocks=2)
    return VAE(priors.StandardNormal(64), likelihood(body, (3, SIZE, SIZE)), conditionals.DiagonalNormal(encoder, 64))


def deep(likelihood: Callable[..., Any], channels: int, *, checkpoint: bool = False) -> TopDownVAE:
    """20 groups at 1x1 to 32x32 pixels."""
    body = nets.ResidualMaps((channels, SIZE, SIZE))
    return TopDownVAE(likelihood(body, (3, SIZE, SIZE)), GROUPS, latent_channels=4, checkpoint=checkpoint)


def bits_per_dim(program: VAE | TopDownVAE, x: Tensor) -> tuple[float, float]:
    """Negative ELBO of some images, and the part of it that is the KL."""
    with torch.no_grad():
        terms = [elbo.ELBO().terms(program.model, program.guide, batch) for batch in x.split(32)]
    scale = math.log(2) * x[0].numel()
    bound = torch.cat([part.elbo for part in terms]).mean()
    return -float(bound) / scale, float(torch.cat([part.kl for part in terms]).mean()) / scale


def train(
    make: Callable[[], VAE | TopDownVAE],
    images: Tensor,
    arguments: argparse.Namespace,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> str:
    """A row of the table."""
    torch.manual_seed(0)
    program = make()
    optimizer = partial(torch.optim.Adam, lr=arguments.lr)
    norm = 200.0 * arguments.batch_size
    options: dict[str, Any] = {"compile": False, "max_grad_norm": norm, "precision": precision}
    svi = SVI(program.model, program.guide, optimizer, elbo.ELBO(), **options)
    train_set, test_set = images[256:], images[:256]
    times = []
    for step in range(arguments.steps):
        generator = torch.Generator().manual_seed(step)
        batch = train_set[torch.randint(len(train_set), (arguments.batch_size,), generator=generator)]
        start = time.perf_counter()
        svi.step(batch)
        times.append(time.perf_counter() - start)
    memory = peak_memory(lambda: svi.step(train_set[: arguments.batch_size]))
    program.eval()
    bits, kl = bits_per_dim(program, test_set)
    size = sum(parameter.numel() for parameter in program.parameters())
    return f"{bits:9.3f} {kl:7.3f} {1e3 * statistics.median(times):9.0f} {memory / 2**20:9.0f} {size / 1e3:9.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--images", type=int, default=4_000)
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="contenders, by their whole names")
    arguments = parser.parse_args()
    contenders: dict[str, tuple[Callable[[], VAE | TopDownVAE], Any]] = {}
    for name, likelihood in LIKELIHOODS.items():
        contenders[f"flat, {name}"] = partial(flat, likelihood, arguments.channels), "float32"
        contenders[f"deep, {name}"] = partial(deep, likelihood, arguments.channels), "float32"
    again = partial(deep, LIKELIHOODS["logistic"], arguments.channels, checkpoint=True)
    contenders["deep, logistic, checkpoint"] = again, "float32"
    contenders["deep, logistic, checkpoint, bfloat16"] = again, "bfloat16"
    images = shapes(arguments.images, 0)
    print(
        f"{arguments.steps} steps, batch {arguments.batch_size}, {torch.get_num_threads()} threads, {torch.__version__}"
    )
    print(f"{'':37} {'bits/dim':>9} {'KL':>7} {'ms/step':>9} {'MiB':>9} {'1000 w':>9}")
    for name, (make, precision) in contenders.items():
        if not arguments.only or name in arguments.only:
            print(f"{name:37} {train(make, images, arguments, precision)}", flush=True)


if __name__ == "__main__":
    main()
